"""SPDY/3.1 on a wire: a `Session` whose streams come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from runtime.streaming import spdy
from runtime.streaming.connection import ConnectionLostError, Wire
from runtime.streaming.session import Session, Stream, StreamResetError

OnStream = Callable[[Stream], bool]
"""Called with each stream that the peer asks for; returns whether it is welcome."""


class SpdySession(Session):
    """Either end of a SPDY connection."""

    def __init__(self, wire: Wire, *, is_server: bool, on_stream: OnStream | None = None) -> None:
        super().__init__(wire)
        self._spdy = spdy.SpdyConnection(is_server)
        self._is_server = is_server
        self._on_stream = on_stream
        self._answers: dict[int, asyncio.Future[None]] = {}
        wire.set_receiver(self._receive)

    def _flush(self) -> None:
        if data := self._spdy.data_to_send():
            self._wire.write(data)

    def _receive(self, data: bytes) -> None:
        for event in self._spdy.receive_data(data):
            self._handle(event)
        self._flush()

    def _handle(self, event: spdy.Event) -> None:
        match event:
            case spdy.StreamOpened(number, headers):
                self._opened(number, headers)
            case spdy.StreamAnswered(number):
                if answer := self._answers.pop(number, None):
                    answer.set_result(None)
            case spdy.DataReceived(number, data):
                if stream := self.streams.get(number):
                    stream.feed(data)
                else:
                    self._spdy.consumed(number, len(data))
            case spdy.StreamEnded(number):
                if stream := self.streams.get(number):
                    stream.feed_end()
            case spdy.StreamReset(number):
                if stream := self.streams.pop(number, None):
                    stream.feed_reset()
                if answer := self._answers.pop(number, None):
                    answer.set_exception(StreamResetError())
            case spdy.GoneAway() if self._is_server:
                # 2.6.6 lets streams that stand go on; but the kubelet's and crictl's client says this only when it
                # leaves, and then waits for its streams to be closed.
                self._wire.abort_after_flush()
            case spdy.Failed():
                self._flush()
                self._wire.abort_after_flush()

    def _opened(self, number: int, headers: dict[str, str]) -> None:
        stream = Stream(self, number, headers)
        # Answered before it is announced: what its user sends has to come after the SYN_REPLY.
        self.streams[number] = stream
        if self._on_stream is None or not self._on_stream(stream):
            del self.streams[number]
            self._spdy.reset(number, spdy.ResetStatus.REFUSED_STREAM)
        else:
            self._spdy.reply(number)

    async def open(self, headers: dict[str, str]) -> Stream:
        """Open a stream and wait until the peer agrees. Raises StreamResetError or ConnectionLostError."""
        number = self._spdy.open(headers)
        stream = self.streams[number] = Stream(self, number, headers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._flush()
        await answer
        return stream

    async def watch(self) -> None:
        """Return when the connection is over, having told everybody who waits for a stream."""
        await super().watch()
        for answer in self._answers.values():
            answer.set_exception(ConnectionLostError())
        self._answers.clear()

    def on_consumed(self, stream: Stream, count: int) -> None:
        """Let the peer send as much again."""
        self._spdy.consumed(stream.number, count)
        self._flush()

    def send(self, stream: Stream, data: bytes) -> None:
        """Send bytes on a stream."""
        self._spdy.send(stream.number, data)
        self._flush()

    def send_end(self, stream: Stream) -> None:
        """Half-close a stream."""
        self._spdy.send(stream.number, b"", end=True)
        self._flush()

    def send_reset(self, stream: Stream) -> None:
        """Reset a stream."""
        self.streams.pop(stream.number, None)
        self._spdy.reset(stream.number)
        self._flush()

    async def finish(self) -> None:
        """End all streams, say GOAWAY, send what waits to be sent, close."""
        for stream in list(self.streams.values()):
            stream.end()
        self._spdy.go_away()
        self._flush()
        await self._wire.finish()
