"""SPDY/3.1 without I/O: bytes in, events and bytes out; both roles.

What the kubelet, kubectl and crictl speak is SPDY as moby/spdystream understands it. Where that differs from
the specification (SPDY Protocol - Draft 3.1), the peer is followed:

- It reads WINDOW_UPDATE but never sends it, and never waits for it. So what is sent here is not limited by
the windows of
  2.6.8 either, or an exec would stall after 64 KiB. WINDOW_UPDATE is sent all the same, for peers that do
  wait.
- It drops data that arrives before the SYN_REPLY of its stream. So a stream is answered before anything is
sent on it.

A connection lives from `receive_data` to `receive_data`: each call returns events, and may leave bytes in
`data_to_send`. It never raises on bad input: a violation ends in a `Failed` event, with the GOAWAY to send
before closing.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from runtime.streaming.spdy_headers import HeaderDecoder, HeaderEncoder, HeaderError

VERSION: Final = 3

MAX_CONTROL_BYTES: Final = 32 * 1024
"""Payload of a control frame. The specification asks for 8192 at least (2.2.1)."""

MAX_STREAMS: Final = 2200
"""Open at once on one connection; more are refused."""

WINDOW_UPDATE_BYTES: Final = 32 * 1024
"""How much is consumed before the peer hears of it: half the initial window (2.6.8)."""

MAX_DATA_FRAME: Final = 0xFFFFFF

_DATA_FIN: Final = 0x01
_CONTROL_FIN: Final = 0x01
_ID_MASK: Final = 0x7FFFFFFF


class FrameType(enum.IntEnum):
    """Control frames (2.6)."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class ResetStatus(enum.IntEnum):
    """Why a stream was reset (2.6.3)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9
    FRAME_TOO_LARGE = 11


class GoAwayStatus(enum.IntEnum):
    """Why a connection ends (2.6.6)."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer asks for a stream: answer with `reply` or `reset`."""

    stream: int
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class StreamAnswered:
    """The peer agrees to a stream that was opened here."""

    stream: int
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Some bytes of a stream, not necessarily a whole frame. `consumed` them when they are used up."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer will send no more on a stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer gave up a stream, in both directions. `status` is a ResetStatus, or what a newer peer
    knows."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The peer answered a ping."""

    ping: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """The peer takes no new streams; those that are open go on."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The peer violated the protocol. Send what there is to send, and close."""

    reason: str


Event = StreamOpened | StreamAnswered | DataReceived | StreamEnded | StreamReset | Pong | GoneAway | Failed


class _Violation(Exception):
    pass


@dataclass(slots=True)
class _Stream:
    answered: bool = False
    """The SYN_REPLY was sent, or received."""
    we_ended: bool = False
    they_ended: bool = False
    unreported: int = 0
    """Bytes consumed that no WINDOW_UPDATE has told of."""


@dataclass(slots=True)
class _DataFrame:
    """A data frame of which part has arrived."""

    stream: int
    remaining: int
    fin: bool


@dataclass(slots=True)
class SpdyConnection:
    """One end of a connection."""

    is_server: bool
    _input: bytearray = field(default_factory=bytearray, init=False)
    _output: bytearray = field(default_factory=bytearray, init=False)
    _encoder: HeaderEncoder = field(default_factory=HeaderEncoder, init=False)
    _decoder: HeaderDecoder = field(default_factory=HeaderDecoder, init=False)
    _streams: dict[int, _Stream] = field(default_factory=dict, init=False)
    _data: _DataFrame | None = field(default=None, init=False)
    _last_theirs: int = field(default=0, init=False)
    _next_ours: int = field(default=0, init=False)
    _next_ping: int = field(default=0, init=False)
    _unreported: int = field(default=0, init=False)
    _failed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        # 2.3.2: "If the server is initiating the stream, the Stream-ID must be even. If the client …, … odd."
        self._next_ours = self._next_ping = 2 if self.is_server else 1

    def data_to_send(self) -> bytes:
        """Take the bytes that wait to be sent."""
        data = bytes(self._output)
        self._output.clear()
        return data

    # -- receiving
    # ---------------------------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> list[Event]:
        """Process bytes from the peer. After a `Failed` everything is ignored."""
        if self._failed:
            return []
        self._input += data
        events: list[Event] = []
        try:
            while self._step(events):
                pass
        except (_Violation, HeaderError) as error:
            self._failed = True
            self._input.clear()
            self.go_away(GoAwayStatus.PROTOCOL_ERROR)
            events.append(Failed(str(error)))
        return events

    def _step(self, events: list[Event]) -> bool:
        """Process one frame, or the part of a data frame that is here; False when more input is needed."""
        if self._data is not None:
            return self._continue_data(self._data, events)
        if len(self._input) < 8:
            return False
        first, second = struct.unpack_from("!II", self._input)
        flags, length = second >> 24, second & 0xFFFFFF
        if not first & 0x80000000:
            del self._input[:8]
            if first == 0:
                raise _Violation("data on stream 0")
            self._data = _DataFrame(first, length, bool(flags & _DATA_FIN))
            return True
        if first >> 16 != 0x8000 | VERSION:
            raise _Violation(f"SPDY version {first >> 16 & 0x7FFF}")
        if length > MAX_CONTROL_BYTES:
            raise _Violation(f"a control frame of {length} bytes")
        if len(self._input) < 8 + length:
            return False
        payload = bytes(self._input[8 : 8 + length])
        del self._input[: 8 + length]
        events.extend(self._control(first & 0xFFFF, flags, payload))
        return True

    def _continue_data(self, frame: _DataFrame, events: list[Event]) -> bool:
        if frame.remaining and not self._input:
            return False
        chunk = bytes(self._input[: frame.remaining])
        del self._input[: len(chunk)]
        frame.remaining -= len(chunk)
        stream = self._streams.get(frame.stream)
        if stream is None or stream.they_ended:
            self._count(len(chunk))
            if not frame.remaining:
                self._data = None
                self._refuse_data(frame.stream, stream)
            return True
        if chunk:
            events.append(DataReceived(frame.stream, chunk))
        if not frame.remaining:
            self._data = None
            if frame.fin:
                events.append(self._they_end(frame.stream, stream))
        return True

    def _refuse_data(self, number: int, stream: _Stream | None) -> None:
        """2.2.2: data for a stream that is not open "MUST issue a stream error … INVALID_STREAM". For one
        that was open it may have been under way when the stream was reset, and is dropped."""
        if stream is not None:
            self._reset(number, ResetStatus.STREAM_ALREADY_CLOSED)
        elif self._is_theirs(number) and number > self._last_theirs:
            self._reset(number, ResetStatus.INVALID_STREAM)

    def _is_theirs(self, number: int) -> bool:
        return number % 2 == (1 if self.is_server else 0)

    def _control(self, kind: int, flags: int, payload: bytes) -> Iterator[Event]:
        if kind == FrameType.SYN_STREAM:
            yield from self._on_syn_stream(flags, payload)
        elif kind == FrameType.SYN_REPLY:
            yield from self._on_syn_reply(flags, payload)
        elif kind == FrameType.HEADERS:
            yield from self._on_headers(flags, payload)
        elif kind == FrameType.RST_STREAM:
            number, status = self._words(payload, "RST_STREAM", 2)
            if self._streams.pop(number & _ID_MASK, None) is not None:
                yield StreamReset(number & _ID_MASK, status)
        elif kind == FrameType.PING:
            yield from self._on_ping(*self._words(payload, "PING", 1))
        elif kind == FrameType.GOAWAY:
            self._words(payload, "GOAWAY", 2)
            yield GoneAway()
        # SETTINGS and WINDOW_UPDATE limit what is not limited here. 2.2.1: "Control frame processing
        # requirements: … If an endpoint receives a control frame for a type it does not recognize, it must
        # ignore the frame."

    @staticmethod
    def _words(payload: bytes, name: str, count: int) -> tuple[int, ...]:
        if len(payload) < 4 * count:
            raise _Violation(f"{name} of {len(payload)} bytes")
        return struct.unpack_from(f"!{count}I", payload)

    def _on_syn_stream(self, flags: int, payload: bytes) -> Iterator[Event]:
        number = self._words(payload, "SYN_STREAM", 1)[0] & _ID_MASK
        if len(payload) < 10:
            raise _Violation(f"SYN_STREAM of {len(payload)} bytes")
        headers = self._decoder.decode(payload[10:])  # first of all: the zlib context has to keep up
        if not self._is_theirs(number) or number <= self._last_theirs:
            # 2.3.2: "If an endpoint receives a SYN_STREAM with a stream id which is less than any previously
            # received SYN_STREAM, it MUST issue a session error … PROTOCOL_ERROR."
            raise _Violation(f"SYN_STREAM with id {number} after {self._last_theirs}")
        self._last_theirs = number
        if len(self._streams) >= MAX_STREAMS:
            self._reset(number, ResetStatus.REFUSED_STREAM)
            return
        stream = self._streams[number] = _Stream()
        yield StreamOpened(number, headers)
        if flags & _CONTROL_FIN:
            yield self._they_end(number, stream)

    def _on_syn_reply(self, flags: int, payload: bytes) -> Iterator[Event]:
        number = self._words(payload, "SYN_REPLY", 1)[0] & _ID_MASK
        headers = self._decoder.decode(payload[4:])
        stream = self._streams.get(number)
        if stream is None:
            return
        if stream.answered:
            # 2.6.2: "If an endpoint receives multiple SYN_REPLY frames for the same active stream ID, it MUST
            # issue a stream error … STREAM_IN_USE."
            self._reset(number, ResetStatus.STREAM_IN_USE)
            yield StreamReset(number, ResetStatus.STREAM_IN_USE)
            return
        stream.answered = True
        yield StreamAnswered(number, headers)
        if flags & _CONTROL_FIN:
            yield self._they_end(number, stream)

    def _on_headers(self, flags: int, payload: bytes) -> Iterator[Event]:
        number = self._words(payload, "HEADERS", 1)[0] & _ID_MASK
        self._decoder.decode(payload[4:])
        stream = self._streams.get(number)
        if stream is not None and flags & _CONTROL_FIN and not stream.they_ended:
            yield self._they_end(number, stream)

    def _on_ping(self, number: int) -> Iterator[Event]:
        """2.6.5: "Receivers of a PING frame should send an identical frame to the sender as soon as
        possible", but not of one that answers their own, which they know by its parity."""
        if self._is_theirs(number):
            self._send_control(FrameType.PING, 0, struct.pack("!I", number))
        else:
            yield Pong(number)

    def _they_end(self, number: int, stream: _Stream) -> StreamEnded:
        stream.they_ended = True
        self._forget_if_over(number, stream)
        return StreamEnded(number)

    def consumed(self, number: int, count: int) -> None:
        """Tell the peer that bytes of a `DataReceived` were used up, so that it may send as many more."""
        self._count(count)
        stream = self._streams.get(number)
        if stream is None or stream.they_ended:
            return
        stream.unreported += count
        if stream.unreported >= WINDOW_UPDATE_BYTES:
            self._send_control(FrameType.WINDOW_UPDATE, 0, struct.pack("!II", number, stream.unreported))
            stream.unreported = 0

    def _count(self, count: int) -> None:
        """The same for the connection's window, which SPDY/3.1 added as that of stream 0."""
        self._unreported += count
        if self._unreported >= WINDOW_UPDATE_BYTES:
            self._send_control(FrameType.WINDOW_UPDATE, 0, struct.pack("!II", 0, self._unreported))
            self._unreported = 0

    # -- sending
    # -----------------------------------------------------------------------------------------------------

    def open(self, headers: dict[str, str]) -> int:
        """Ask for a stream; returns its id. Send nothing on it before its `StreamAnswered`."""
        number = self._next_ours
        self._next_ours += 2
        self._streams[number] = _Stream()
        payload = struct.pack("!IIH", number, 0, 0) + self._encoder.encode(headers)
        self._send_control(FrameType.SYN_STREAM, 0, payload)
        return number

    def reply(self, number: int) -> None:
        """Agree to a stream that the peer opened."""
        stream = self._streams.get(number)
        if stream is not None and not stream.answered:
            stream.answered = True
            self._send_control(FrameType.SYN_REPLY, 0, struct.pack("!I", number) + self._encoder.encode({}))

    def send(self, number: int, data: bytes, *, end: bool = False) -> None:
        """Send bytes on a stream, at most MAX_DATA_FRAME; with `end`, the last ones. Nothing happens on a
        stream that is over, as the peer may have reset it at any moment."""
        stream = self._streams.get(number)
        if stream is None or stream.we_ended:
            return
        self._output += struct.pack("!II", number, (_DATA_FIN << 24 if end else 0) | len(data))
        self._output += data
        if end:
            stream.we_ended = True
            self._forget_if_over(number, stream)

    def reset(self, number: int, status: ResetStatus = ResetStatus.CANCEL) -> None:
        """Give a stream up in both directions."""
        if number in self._streams:
            self._reset(number, status)

    def _reset(self, number: int, status: ResetStatus) -> None:
        self._streams.pop(number, None)
        self._send_control(FrameType.RST_STREAM, 0, struct.pack("!II", number, status))

    def ping(self) -> int:
        """Ask for a sign of life; returns the id that its `Pong` will have."""
        number = self._next_ping
        self._next_ping += 2
        self._send_control(FrameType.PING, 0, struct.pack("!I", number))
        return number

    def go_away(self, status: GoAwayStatus = GoAwayStatus.OK) -> None:
        """Announce that no new streams are taken; before closing."""
        self._send_control(FrameType.GOAWAY, 0, struct.pack("!II", self._last_theirs, status))

    def _forget_if_over(self, number: int, stream: _Stream) -> None:
        if stream.we_ended and stream.they_ended:
            self._streams.pop(number, None)

    def _send_control(self, kind: FrameType, flags: int, payload: bytes) -> None:
        header = struct.pack("!II", 0x80000000 | VERSION << 16 | kind, flags << 24 | len(payload))
        self._output += header + payload
