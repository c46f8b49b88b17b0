"""Streams over a connection, whatever protocol carries them.

A `Session` is the connection seen as many byte streams; SpdySession and WebSocketSession are the two kinds. A
`Stream` is one of them: what arrives on it is kept until it is read. When a reader falls behind, the whole
connection is not read any further, as the peers known send without regard to any window of a single stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

from runtime.streaming.connection import ConnectionLostError, Wire

STREAM_BYTES: Final = 256 * 1024
"""What may wait for the reader of one stream before the connection is not read any further."""

SESSION_BYTES: Final = 16 * 1024 * 1024
"""What may wait for the readers of all streams together."""


class StreamResetError(Exception):
    """The peer gave the stream up."""


class Stream:
    """A byte stream in each direction. One task reads it."""

    def __init__(self, session: Session, number: int, headers: Mapping[str, str]) -> None:
        self._session = session
        self.number = number
        self.headers = headers
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._ended = False
        self._reset = False
        self._arrival = asyncio.Event()

    # -- the session's side
    # ------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes have come."""
        if self._reset or self._ended:
            self._session.on_consumed(self, len(data))
            return
        self._chunks.append(data)
        self._buffered += len(data)
        self._arrival.set()
        self._session.on_buffered(self, self._buffered)

    def feed_end(self) -> None:
        """No more will come."""
        self._ended = True
        self._arrival.set()

    def feed_reset(self) -> None:
        """The peer takes no more and sends no more."""
        self._reset = True
        self._discard()
        self._arrival.set()

    def wake(self) -> None:
        """The connection is over: whoever waits has to look."""
        self._arrival.set()

    def _discard(self) -> None:
        discarded, self._buffered = self._buffered, 0
        self._chunks.clear()
        self._session.on_buffered(self, 0)
        if discarded:
            self._session.on_consumed(self, discarded)

    # -- the user's side
    # ---------------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """Some bytes; none at the end. Raises StreamResetError or ConnectionLostError."""
        while not self._chunks:
            if self._reset:
                raise StreamResetError
            if self._ended:
                return b""
            if self._session.lost.is_set():
                raise ConnectionLostError
            self._arrival.clear()
            await self._arrival.wait()
        data = self._chunks.popleft()
        self._buffered -= len(data)
        self._session.on_buffered(self, self._buffered)
        self._session.on_consumed(self, len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting first until the connection takes some. Raises StreamResetError or
        ConnectionLostError."""
        await self._session.drain()
        if self._reset:
            raise StreamResetError
        self._session.send(self, data)

    def end(self) -> None:
        """Send no more."""
        if not self._reset:
            self._session.send_end(self)

    def reset(self) -> None:
        """Give the stream up in both directions."""
        if not self._reset:
            self._reset = True
            self._session.send_reset(self)
            self._discard()
            self._arrival.set()


class Session:
    """The base of what carries streams: buffering, backpressure and the end."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._full: set[Stream] = set()
        self._waiting: dict[Stream, int] = {}
        self._total = 0
        self._held = False
        self.streams: dict[int, Stream] = {}

    @property
    def lost(self) -> asyncio.Event:
        """Set when the connection is over."""
        return self._wire.lost

    async def drain(self) -> None:
        """Return when more may be sent. Raises ConnectionLostError."""
        await self._wire.drain()

    async def watch(self) -> None:
        """Return when the connection is over, having told everybody who waits for a stream."""
        await self._wire.lost.wait()
        for stream in self.streams.values():
            stream.wake()

    def on_buffered(self, stream: Stream, count: int) -> None:
        """A stream holds so many bytes for its reader."""
        self._total += count - self._waiting.pop(stream, 0)
        if count:
            self._waiting[stream] = count
        if count >= STREAM_BYTES:
            self._full.add(stream)
        elif count <= STREAM_BYTES // 2:
            self._full.discard(stream)
        if self._full or self._total >= SESSION_BYTES:
            self._held = True
            self._wire.pause_reading()
        elif self._held and self._total <= SESSION_BYTES // 2:
            self._held = False
            self._wire.resume_reading()

    def on_consumed(self, stream: Stream, count: int) -> None:
        """So many bytes of a stream were used up."""

    def send(self, stream: Stream, data: bytes) -> None:
        """Send bytes on a stream."""
        raise NotImplementedError

    def send_end(self, stream: Stream) -> None:
        """Send no more on a stream."""
        raise NotImplementedError

    def send_reset(self, stream: Stream) -> None:
        """Give a stream up."""
        raise NotImplementedError

    async def finish(self) -> None:
        """Say goodbye, send what waits to be sent, close."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close at once."""
        self._wire.abort()
