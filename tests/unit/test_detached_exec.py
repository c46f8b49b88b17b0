"""`crisp exec -d` where the shim is of an older crisp."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from proto import shim_protocol
from proto.errors import Code, CrispError
from runtime.api import stream_sources
from runtime.api.stream_sources import StreamSources
from runtime.shims.client import ShimClient


async def test_an_older_shim_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    class Old(ShimClient):
        version = shim_protocol.SINCE["leave"] - 1

        def __init__(self) -> None:
            """Connected to nothing."""

        async def exec(self, *args: Any, **fields: Any) -> Any:
            begun.append(args)

    monkeypatch.setattr(stream_sources.container_exec, "running", lambda _node, _id: (SimpleNamespace(), Old()))
    node: Any = SimpleNamespace()
    with pytest.raises(CrispError) as refused:
        await StreamSources(node).detached("c", ["true"], tty=False, changes={})
    assert (refused.value.code, begun) == (Code.FAILED_PRECONDITION, [])
