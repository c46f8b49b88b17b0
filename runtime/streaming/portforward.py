"""Port-forward: connections into a pod, each a data stream and an error stream.

Over SPDY (portforward.k8s.io, also inside a WebSocket) the client opens the two with the headers `port`,
`requestID` and `streamType`, for as many connections as it likes. In the older form over WebSocket the ports
are known from the request: channels 2n and 2n + 1 are data and error of the n-th, and each begins with its
port, two bytes, little end first.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from proto.errors import CrispError
from runtime.streaming.connection import ConnectionLostError, Wire
from runtime.streaming.relay import copy_input, read_fd
from runtime.streaming.session import Session, Stream, StreamResetError
from runtime.streaming.spdy_session import SpdySession
from runtime.streaming.websocket import ChannelConnection
from runtime.streaming.websocket_session import WebSocketSession

log = structlog.get_logger(__name__)

PROTOCOL: Final = "portforward.k8s.io"
MAX_CONNECTIONS: Final = 1024
"""At once in one session; a browser or a load test opens hundreds. Each has a descriptor here and two streams."""

Dial = Callable[[int], Awaitable[socket.socket]]


@dataclass(slots=True)
class _Pair:
    """The streams of one connection, of which one may still be missing."""

    port: int
    deadline: asyncio.TimerHandle
    streams: dict[str, Stream] = field(default_factory=dict)
    """By streamType."""


async def forward(port: int, data: Stream, error: Stream, dial: Dial) -> None:
    """Join a data stream with a port of the pod, until both sides have ended or one of them breaks off.

    What goes wrong with the port is told on the error stream, and only there: the session goes on.
    """
    try:
        connection = await dial(port)
    except CrispError as failure:
        with contextlib.suppress(StreamResetError):
            await error.write(f"error forwarding port {port}: {failure.message}".encode())
        error.end()
        data.end()
        return
    with connection:
        connection.setblocking(False)
        upward = asyncio.create_task(_upward(data, connection))
        try:
            await _downward(connection.fileno(), data)
            error.end()
            # The client resets the data stream when it has everything, or ends it.
            await upward
        finally:
            upward.cancel()
            await asyncio.gather(upward, return_exceptions=True)


async def _upward(data: Stream, connection: socket.socket) -> None:
    await copy_input(data, connection.fileno())
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


async def _downward(fd: int, data: Stream) -> None:
    try:
        while chunk := await read_fd(fd):
            await data.write(chunk)
            await asyncio.sleep(0)
        data.end()
    except StreamResetError:
        return


class _Tasks:
    """The connections of one session; what goes wrong with one ends that one."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it beside the others."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, ConnectionLostError):
            log.warning("a forwarded connection failed", error=repr(error))

    def __len__(self) -> int:
        return len(self._tasks)

    async def cancel(self) -> None:
        """End them all."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class SpdyForwarder:
    """A session over SPDY."""

    def __init__(self, wire: Wire, dial: Dial, *, pair_seconds: float) -> None:
        self._dial = dial
        self._pair_seconds = pair_seconds
        self._pairs: dict[str, _Pair] = {}
        self._tasks = _Tasks()
        self._session = SpdySession(wire, is_server=True, on_stream=self._on_stream)

    async def run(self) -> None:
        """Serve until the client leaves."""
        try:
            await self._session.watch()
        finally:
            for pair in self._pairs.values():
                pair.deadline.cancel()
            await self._tasks.cancel()

    def _on_stream(self, stream: Stream) -> bool:
        kind, port = stream.headers.get("streamtype", ""), _port(stream.headers.get("port", ""))
        if kind not in ("data", "error") or port is None:
            return False
        request = stream.headers.get("requestid") or _request_of(stream.number, kind)
        pair = self._pairs.get(request)
        if pair is None:
            if len(self._pairs) + len(self._tasks) >= MAX_CONNECTIONS:
                return False
            deadline = asyncio.get_running_loop().call_later(self._pair_seconds, self._give_up, request)
            pair = self._pairs[request] = _Pair(port, deadline)
        if kind in pair.streams or pair.port != port:
            return False
        pair.streams[kind] = stream
        if len(pair.streams) == 2:
            pair.deadline.cancel()
            del self._pairs[request]
            self._tasks.start(self._serve(port, pair.streams["data"], pair.streams["error"]))
        return True

    async def _serve(self, port: int, data: Stream, error: Stream) -> None:
        try:
            await forward(port, data, error, self._dial)
        finally:
            data.reset()
            error.reset()

    def _give_up(self, request: str) -> None:
        """The other stream of a pair has not come."""
        for stream in self._pairs.pop(request).streams.values():
            stream.reset()


def _port(text: str) -> int | None:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    return number if 0 < number < 65536 else None


def _request_of(number: int, kind: str) -> str:
    """Clients before Kubernetes 1.2 send no requestID, but open error and data stream right after each
    other."""
    return f"stream {number if kind == 'error' else number - 2}"


async def serve_channels(wire: Wire, codec: ChannelConnection, ports: Sequence[int], dial: Dial) -> None:
    """Serve the older form over WebSocket until the client leaves."""
    session: Session = WebSocketSession(wire, codec, range(2 * len(ports)))
    tasks = _Tasks()
    try:
        for index, port in enumerate(ports):
            data, error = session.streams[2 * index], session.streams[2 * index + 1]
            for stream in (data, error):
                await stream.write(struct.pack("<H", port))
            tasks.start(forward(port, data, error, dial))
        await session.watch()
    except ConnectionLostError:
        return
    finally:
        await tasks.cancel()
