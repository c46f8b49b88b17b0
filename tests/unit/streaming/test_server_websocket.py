"""The whole server over WebSocket, with aiohttp as the client and local processes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from runtime.streaming.server import StreamingServer
from tests.unit.streaming.local_processes import LocalBackend
from tests.unit.streaming.spdy_client import SECONDS, exit_code

V5, V4, V4_BASE64 = "v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"
MIB = 1024 * 1024


def url(server: StreamingServer, *cmd: str, tty: bool = False, stdin: bool = False) -> str:
    return server.exec_url("c", cmd, tty=tty, stdin=stdin, stdout=True, stderr=not tty)


@asynccontextmanager
async def connect(address: str, *protocols: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(address, protocols=protocols, max_msg_size=0) as ws:
            yield ws


async def everything(ws: aiohttp.ClientWebSocketResponse) -> dict[int, bytes]:
    """What comes on each channel until the server closes, normally."""
    found: dict[int, bytes] = {}
    async with asyncio.timeout(SECONDS):
        async for message in ws:
            if message.type is aiohttp.WSMsgType.TEXT:
                channel, data = int(message.data[0]), base64.b64decode(message.data[1:])
            else:
                channel, data = message.data[0], message.data[1:]
            found[channel] = found.get(channel, b"") + data
    assert ws.close_code == 1000
    return found


@pytest.mark.parametrize("protocol", [V5, V4, V4_BASE64])
async def test_output_and_exit_code(server: StreamingServer, protocol: str) -> None:
    async with connect(url(server, "sh", "-c", "echo out; echo err >&2; exit 7"), protocol) as ws:
        assert ws.protocol == protocol
        channels = await everything(ws)
    assert (channels[1], channels[2]) == (b"out\n", b"err\n")
    assert exit_code(json.loads(channels[3])) == 7


@pytest.mark.parametrize("protocols", [(), ("channel.k8s.io",), ("base64.channel.k8s.io",)])
async def test_protocols_before_v4_tell_errors_as_text(server: StreamingServer, protocols: tuple[str, ...]) -> None:
    async with connect(url(server, "sh", "-c", "echo out; exit 7"), *protocols) as ws:
        channels = await everything(ws)
    assert channels[1] == b"out\n"
    assert channels[3] == b"command terminated with non-zero exit code: exit status 7"


async def test_an_empty_message_comes_first(server: StreamingServer) -> None:
    async with connect(url(server, "cat", stdin=True), V4) as ws:
        async with asyncio.timeout(SECONDS):
            assert (await ws.receive()).data == b"\1"


async def test_the_close_signal_ends_stdin(server: StreamingServer) -> None:
    block = os.urandom(MIB)
    async with connect(url(server, "cat", stdin=True), V5) as ws:

        async def send() -> None:
            for _ in range(20):
                await ws.send_bytes(b"\0" + block)
            await ws.send_bytes(b"\xff\0")

        sender = asyncio.create_task(send())
        channels = await everything(ws)
        await sender
    assert channels[1] == block * 20
    assert exit_code(json.loads(channels[3])) == 0


async def test_a_terminal_with_resize(server: StreamingServer) -> None:
    async with connect(url(server, "sh", tty=True, stdin=True), V5) as ws:
        await ws.send_bytes(b'\4{"Width":101,"Height":33}')
        await ws.send_bytes(b"\0stty -echo; until [ \"$(stty size)\" = '33 101' ]; do :; done; echo sized; exit 5\n")
        channels = await everything(ws)
    assert b"sized\r\n" in channels[1]
    assert exit_code(json.loads(channels[3])) == 5


async def test_pings_are_answered(server: StreamingServer) -> None:
    async with connect(url(server, "cat", stdin=True), V5) as ws:
        await ws.ping(b"alive")
        await ws.send_bytes(b"\0x")
        async with asyncio.timeout(SECONDS):
            while (await ws.receive()).data != b"\1x":
                pass


async def test_a_client_that_closes_ends_the_process(server: StreamingServer, backend: LocalBackend) -> None:
    async with connect(url(server, "sleep", "1000"), V5) as ws:
        async with asyncio.timeout(SECONDS):
            while not backend.processes:
                await asyncio.sleep(0.01)
        await ws.close()
    async with asyncio.timeout(SECONDS):
        await backend.processes[0].closed.wait()


async def test_a_bad_message_ends_the_session(server: StreamingServer, backend: LocalBackend) -> None:
    async with connect(url(server, "sleep", "1000"), V5) as ws:
        async with asyncio.timeout(SECONDS):
            await ws.send_str("text")
            while (await ws.receive()).type is not aiohttp.WSMsgType.CLOSE:
                pass
            assert ws.close_code == 1002
            await backend.processes[0].closed.wait()


async def test_attach(server: StreamingServer, backend: LocalBackend) -> None:
    name = await backend.add_container("sh", "-c", 'read line; echo "got $line"')
    address = server.attach_url(name, tty=False, stdin=True, stdout=True, stderr=False)
    async with connect(address, V5) as ws:
        await ws.send_bytes(b"\0hello\n")
        channels = await everything(ws)
    assert channels[1] == b"got hello\n"
    assert exit_code(json.loads(channels[3])) == 0


async def test_no_common_protocol(server: StreamingServer) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(url(server, "true"), protocols=("v9.channel.k8s.io",))
        assert caught.value.status == 403


async def test_a_failed_start(server: StreamingServer) -> None:
    address = server.exec_url("missing", ["x"], tty=False, stdin=False, stdout=True, stderr=False)
    async with connect(address, V5) as ws:
        channels = await everything(ws)
    status: dict[str, Any] = json.loads(channels[3])
    assert status["reason"] == "InternalError"
    assert "container missing does not exist" in status["message"]
