"""WebSocket on a wire: a `Session` with a fixed set of channels, or a wire for SPDY inside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from runtime.streaming.connection import Wire
from runtime.streaming.session import Session, Stream
from runtime.streaming.websocket import ChannelConnection, ChannelData, ChannelEnded, Closed


class WebSocketSession(Session):
    """The server's end of channels; data on channels that it does not have is dropped."""

    def __init__(self, wire: Wire, codec: ChannelConnection, channels: Iterable[int]) -> None:
        super().__init__(wire)
        self._codec = codec
        self.streams = {number: Stream(self, number, {}) for number in channels}
        wire.set_receiver(self._receive)
        self._flush()

    def _flush(self) -> None:
        if data := self._codec.data_to_send():
            self._wire.write(data)

    def _receive(self, data: bytes) -> None:
        for event in self._codec.receive_data(data):
            match event:
                case ChannelData(channel, chunk):
                    if stream := self.streams.get(channel):
                        stream.feed(chunk)
                case ChannelEnded(channel):
                    if stream := self.streams.get(channel):
                        stream.feed_end()
                case Closed():
                    self._flush()
                    self._wire.abort_after_flush()
        self._flush()

    def send(self, stream: Stream, data: bytes) -> None:
        """Send a message on a channel."""
        self._codec.send(stream.number, data)
        self._flush()

    def send_end(self, stream: Stream) -> None:
        """Nothing: the server has no way to say this of one channel, and clients take the close for all of
        them."""

    def send_reset(self, stream: Stream) -> None:
        """Nothing, likewise."""

    async def finish(self) -> None:
        """Send the close frame and what waits to be sent, then close."""
        self._codec.close()
        self._flush()
        await self._wire.finish()


class WebSocketTunnel:
    """A `Wire` inside binary messages (KEP-4006)."""

    def __init__(self, wire: Wire, codec: ChannelConnection) -> None:
        self._wire = wire
        self._codec = codec
        self._receiver: Callable[[bytes], None] = lambda _: None
        wire.set_receiver(self._receive)
        self._flush()

    def _flush(self) -> None:
        if data := self._codec.data_to_send():
            self._wire.write(data)

    def _receive(self, data: bytes) -> None:
        for event in self._codec.receive_data(data):
            if isinstance(event, ChannelData):
                self._receiver(event.data)
            elif isinstance(event, Closed):
                self._flush()
                self._wire.abort_after_flush()
        self._flush()

    def set_receiver(self, receiver: Callable[[bytes], None]) -> None:
        """Have bytes delivered to another function from now on."""
        self._receiver = receiver

    def write(self, data: bytes) -> None:
        """Send bytes as one message."""
        self._codec.send(0, data)
        self._flush()

    async def drain(self) -> None:
        """Return when more may be written. Raises ConnectionLostError."""
        await self._wire.drain()

    def pause_reading(self) -> None:
        """Deliver no more bytes for now."""
        self._wire.pause_reading()

    def resume_reading(self) -> None:
        """Deliver bytes again."""
        self._wire.resume_reading()

    async def finish(self) -> None:
        """Send the close frame and what waits to be sent, then close."""
        self._codec.close()
        self._flush()
        await self._wire.finish()

    def abort(self) -> None:
        """Close at once."""
        self._wire.abort()

    def abort_after_flush(self) -> None:
        """Close when what was written is sent."""
        self._wire.abort_after_flush()

    @property
    def lost(self) -> asyncio.Event:
        """Set when the connection is over."""
        return self._wire.lost
