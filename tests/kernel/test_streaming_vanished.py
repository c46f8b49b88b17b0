"""Streaming clients whose machine vanishes without a word; the node and the client's machine are network namespaces."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from runtime.streaming import connection as module
from runtime.streaming.config import StreamingConfig
from runtime.streaming.server import StreamingServer
from tests.kernel.netlab import Netns, cable
from tests.unit.streaming.local_processes import LocalBackend
from tests.unit.streaming.spdy_client import SpdyClient

pytestmark = pytest.mark.root

SECONDS = 60.0


@pytest.fixture
def lab() -> Iterator[tuple[Netns, Netns]]:
    with ExitStack() as stack:
        node, outside = stack.enter_context(Netns()), stack.enter_context(Netns())
        cable(node, outside)
        node.sh("ip addr add 192.0.2.2/24 dev uplink")
        outside.sh("ip addr add 192.0.2.1/24 dev uplink")
        yield node, outside


async def session(server: StreamingServer, outside: Netns, *cmd: str, stdin: bool) -> SpdyClient:
    """Of a client in the other namespace."""
    url = server.exec_url("c", cmd, tty=False, stdin=stdin, stdout=True, stderr=False)
    parts = urlsplit(url)
    connection = outside.socket(socket.AF_INET, socket.SOCK_STREAM)
    await asyncio.to_thread(connection.connect, (parts.hostname, parts.port))
    connection.setblocking(False)
    return await SpdyClient.connect(url, sock=connection)


@pytest.mark.parametrize("busy", ["stdin", "stdout", "both"])
def test_a_client_that_vanishes_is_noticed_in_seconds(
    lab: tuple[Netns, Netns], busy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With input that the process does not read, with output on its way, and with both."""
    node, outside = lab
    waits = module.KEEPALIVE_IDLE_SECONDS + module.KEEPALIVE_INTERVAL_SECONDS * module.KEEPALIVE_PROBES
    assert max(waits, module.UNANSWERED_SECONDS + module.LOOK_SECONDS) <= 30
    for name in ("KEEPALIVE_IDLE_SECONDS", "KEEPALIVE_INTERVAL_SECONDS", "LOOK_SECONDS", "UNANSWERED_SECONDS"):
        monkeypatch.setattr(module, name, 1)
    script = {"stdin": "exec sleep 1000", "stdout": "while :; do echo hello; sleep 0.1; done"}
    script["both"] = script["stdout"]

    async def body() -> None:
        backend = LocalBackend()
        server = StreamingServer(StreamingConfig(address="192.0.2.2"), backend)
        await server.start()
        try:
            client = await session(server, outside, "sh", "-c", script[busy], stdin=busy != "stdout")
            streams = await client.command("error", "stdout", *(["stdin"] if busy != "stdout" else []))
            if busy != "stdin":
                await streams["stdout"].until(b"hello")
            if busy != "stdout":
                client.writer.write(b"".join(_data(streams["stdin"].number) for _ in range(64)))
            [connection] = server._sessions.values()
            if busy != "stdout":
                async with asyncio.timeout(SECONDS):
                    while connection._reading:
                        await asyncio.sleep(0.01)
            outside.sh("ip link set uplink down")
            async with asyncio.timeout(SECONDS):
                await backend.processes[-1].closed.wait()
            client.writer.transport.abort()
        finally:
            await server.stop()
            await backend.close()

    _run(node, body)


def test_a_client_that_is_there_and_does_not_read_stays(lab: tuple[Netns, Netns], monkeypatch: pytest.MonkeyPatch) -> None:
    node, outside = lab
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(module, "UNANSWERED_SECONDS", 0.3)
    looks: list[bool] = []
    look = module._unanswered
    monkeypatch.setattr(module, "_unanswered", lambda connection: looks.append(look(connection)) or looks[-1])

    async def body() -> None:
        backend = LocalBackend()
        server = StreamingServer(StreamingConfig(address="192.0.2.2"), backend)
        await server.start()
        try:
            client = await session(server, outside, "sh", "-c", "cat /dev/zero", stdin=False)
            streams = await client.command("error", "stdout")
            streams["stdout"].keep = False
            client.stop_reading()
            async with asyncio.timeout(SECONDS):
                while len(looks) < 60:
                    await asyncio.sleep(0.05)
            assert not any(looks)
            assert len(server._sessions) == 1
            client.writer.transport.abort()
        finally:
            await server.stop()
            await backend.close()

    _run(node, body)


def _data(stream: int) -> bytes:
    return stream.to_bytes(4, "big") + (32768).to_bytes(4, "big") + bytes(32768)


def _run(node: Netns, body: object) -> None:
    node.run(lambda: asyncio.run(body()))  # type: ignore[operator]
