"""Port-forward over SPDY, over SPDY inside WebSocket, and over the older channels; the pod is this machine's loopback."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator

import aiohttp
import pytest

from runtime.streaming.server import StreamingServer
from tests.unit.streaming.spdy_client import SECONDS, ClientStream, Refused, SpdyClient
from tests.unit.streaming.test_server_websocket import connect

PROTOCOL = ("portforward.k8s.io",)
MIB = 1024 * 1024


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write(b"|end")
        await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    served = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield served.sockets[0].getsockname()[1]
    served.close()
    await served.wait_closed()


@pytest.fixture
async def closed_port() -> int:
    served = await asyncio.start_server(echo, "127.0.0.1", 0)
    number: int = served.sockets[0].getsockname()[1]
    served.close()
    await served.wait_closed()
    return number


async def pair(client: SpdyClient, port: int, request: int) -> tuple[ClientStream, ClientStream]:
    headers = {"port": str(port), "requestid": str(request)}
    error = await client.open(streamtype="error", **headers)
    await error.end()
    return await client.open(streamtype="data", **headers), error


async def test_connections_side_by_side(server: StreamingServer, port: int) -> None:
    async with await SpdyClient.connect(server.port_forward_url("p"), PROTOCOL) as client:
        assert client.protocol == PROTOCOL[0]

        async def connection(request: int) -> None:
            data, error = await pair(client, port, request)
            payload = os.urandom(MIB)
            await data.write(payload, end=True)
            assert await data.all() == payload + b"|end"
            assert await error.all() == b""

        await asyncio.gather(*(connection(request) for request in range(10)))


async def test_a_refused_port_is_told_and_the_session_goes_on(server: StreamingServer, port: int, closed_port: int) -> None:
    async with await SpdyClient.connect(server.port_forward_url("p"), PROTOCOL) as client:
        data, error = await pair(client, closed_port, 0)
        message = (await error.all()).decode()
        assert f"error forwarding port {closed_port}" in message
        assert "127.0.0.1: Connection refused; ::1: Connection refused" in message
        assert await data.all() == b""
        data, error = await pair(client, port, 1)
        await data.write(b"still here", end=True)
        assert await data.all() == b"still here|end"


async def test_clients_without_request_ids(server: StreamingServer, port: int) -> None:
    async with await SpdyClient.connect(server.port_forward_url("p"), PROTOCOL) as client:
        await client.open(streamtype="error", port=str(port))
        data = await client.open(streamtype="data", port=str(port))
        await data.write(b"x", end=True)
        assert await data.all() == b"x|end"


async def test_a_reset_closes_the_connection_into_the_pod(server: StreamingServer) -> None:
    closed = asyncio.Event()

    async def wait_for_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.read()
        writer.close()
        closed.set()

    served = await asyncio.start_server(wait_for_end, "127.0.0.1", 0)
    async with served, await SpdyClient.connect(server.port_forward_url("p"), PROTOCOL) as client:
        data, _ = await pair(client, served.sockets[0].getsockname()[1], 0)
        await data.until(b"hello")
        data.reset()
        async with asyncio.timeout(SECONDS):
            await closed.wait()


async def test_leaving_closes_the_connections_into_the_pod(server: StreamingServer) -> None:
    closed = asyncio.Event()

    async def wait_for_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await reader.read()
        writer.close()
        closed.set()

    served = await asyncio.start_server(wait_for_end, "127.0.0.1", 0)
    async with served:
        async with await SpdyClient.connect(server.port_forward_url("p"), PROTOCOL) as client:
            data, _ = await pair(client, served.sockets[0].getsockname()[1], 0)
            await data.until(b"hello")
        async with asyncio.timeout(SECONDS):
            await closed.wait()


@pytest.mark.parametrize(
    "headers",
    [
        {"port": "0"},
        {"port": "65536"},
        {"port": "http"},
        {"port": "²"},
        {},
        {"port": "9" * 5000},
        {"port": "80", "streamtype": "stdin"},
    ],
)
async def test_bad_streams_are_refused(server: StreamingServer, headers: dict[str, str]) -> None:
    async with await SpdyClient.connect(server.port_forward_url("p"), PROTOCOL) as client:
        with pytest.raises(Refused):
            await client.open(**{"streamtype": "data", "requestid": "0", **headers})


async def test_half_a_pair_is_reset_after_a_while(server: StreamingServer, port: int) -> None:
    async with await SpdyClient.connect(server.port_forward_url("p"), PROTOCOL) as client:
        error = await client.open(streamtype="error", port=str(port), requestid="0")
        async with asyncio.timeout(SECONDS):
            await error.ended.wait()
        assert error.reset_status is not None
        data, _ = await pair(client, port, 1)
        await data.write(b"x", end=True)
        assert await data.all() == b"x|end"


async def test_channels_of_the_older_websocket_form(server: StreamingServer, port: int, closed_port: int) -> None:
    address = server.port_forward_url("p", [port, closed_port])
    async with connect(address, "v4.channel.k8s.io") as ws:
        channels: dict[int, bytes] = {}

        async def receive(until: int, wanted: bytes) -> None:
            async with asyncio.timeout(SECONDS):
                while wanted not in channels.get(until, b""):
                    message = (await ws.receive()).data
                    channels[message[0]] = channels.get(message[0], b"") + message[1:]

        await receive(3, b"refused")
        for channel, number in ((0, port), (1, port), (2, closed_port), (3, closed_port)):
            assert channels[channel].startswith(struct.pack("<H", number))
        await ws.send_bytes(b"\0hello")
        await receive(0, b"hello")


async def test_the_older_form_needs_ports(server: StreamingServer) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(server.port_forward_url("p"), protocols=("v4.channel.k8s.io",))
        assert caught.value.status == 400


class TunnelReader:
    """Gives out what comes in WebSocket messages, as a StreamReader does."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws, self._buffer = ws, b""

    async def readexactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            message = await self._ws.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                raise asyncio.IncompleteReadError(self._buffer, count)
            self._buffer += message.data
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data


class TunnelWriter:
    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws, self._pending = ws, b""

    def write(self, data: bytes) -> None:
        self._pending += data

    async def drain(self) -> None:
        data, self._pending = self._pending, b""
        await self._ws.send_bytes(data)

    def close(self) -> None:
        pass


async def test_spdy_inside_websocket(server: StreamingServer, port: int) -> None:
    """What crictl port-forward --transport websocket speaks."""
    async with connect(server.port_forward_url("p"), "SPDY/3.1+portforward.k8s.io") as ws:
        writer = TunnelWriter(ws)
        client = SpdyClient(TunnelReader(ws), writer)  # type: ignore[arg-type]
        reading = asyncio.create_task(client._read())
        headers = {"port": str(port), "requestid": "0"}
        error, data = client.syn({"streamtype": "error", **headers}), client.syn({"streamtype": "data", **headers})
        await writer.drain()
        async with asyncio.timeout(SECONDS):
            await error.replied.wait()
            await data.replied.wait()
        payload = os.urandom(MIB)
        await data.write(payload, end=True)
        assert await data.all() == payload + b"|end"
        await ws.close()
        await reading


async def test_many_downloads_at_once_through_one_port_forward(server: StreamingServer) -> None:
    """More streams wait for the client than may write together: each has to wait again after the others."""
    payload = os.urandom(MIB) * 2

    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(payload)
        await writer.drain()
        writer.close()

    served = await asyncio.start_server(send, "127.0.0.1", 0)
    number = served.sockets[0].getsockname()[1]
    async with served, await SpdyClient.connect(server.port_forward_url("p"), PROTOCOL) as client:

        async def download(request: int) -> None:
            data, error = await pair(client, number, request)
            data.keep = False
            assert await error.all() == b""
            async with asyncio.timeout(SECONDS):
                await data.ended.wait()
            assert data.count == len(payload)

        await asyncio.gather(*(download(request) for request in range(100)))


async def test_hundreds_of_connections_at_once(server: StreamingServer, port: int) -> None:
    async with await SpdyClient.connect(server.port_forward_url("p"), PROTOCOL) as client:
        opened = []
        for request in range(400):
            data, _ = await pair(client, port, request)
            await data.write(b"hello")
            opened.append(data)
        for data in opened:
            await data.until(b"hello")
        for data in opened:
            await data.end()
            assert await data.all() == b"hello|end"
