from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from runtime.streaming.config import StreamingConfig
from runtime.streaming.server import StreamingServer
from tests.unit.streaming.local_processes import LocalBackend


@pytest.fixture
async def backend() -> AsyncIterator[LocalBackend]:
    made = LocalBackend()
    yield made
    await made.close()


@pytest.fixture
def config() -> StreamingConfig:
    return StreamingConfig(stream_creation_timeout_seconds=1.0)


@pytest.fixture
async def server(backend: LocalBackend, config: StreamingConfig) -> AsyncIterator[StreamingServer]:
    made = StreamingServer(config, backend)
    await made.start()
    yield made
    await made.stop()
