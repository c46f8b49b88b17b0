"""ttrpc 1.2 without I/O: unary calls over a stream of bytes, from either side.

A frame has ten bytes of header, all big-endian, and then data:

    0       4        8     9      10
    | length | stream | kind | flags | data …

A call is a frame of kind 1 with a Request, its answer one of kind 2 with a Response and the same stream
(ttrpc_messages.proto). The caller numbers its streams 1, 3, 5, …, each higher than the one before. Streams that carry more
than one message in a direction (kind 3, and flags in a request) are what NRI and shims do not use: a call that asks for one
is refused.

Nothing here raises on what the peer sends. What it must not do ends the connection: `failure` says what it was, and whatever
comes after it is not looked at.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from proto import ttrpc_messages_pb2 as messages

LONGEST: Final = 4 << 20
"""Bytes of data in a frame: "the maximum data length is 4MB and any larger size should be rejected"."""

REQUEST: Final = 1
RESPONSE: Final = 2

OK: Final = 0
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13

_HEADER: Final = struct.Struct(">IIBB")
_LAST_STREAM: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; `data` is None if it was longer than LONGEST and has been skipped."""

    stream: int
    kind: int
    flags: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Call:
    """What a peer asks for."""

    stream: int
    service: str
    method: str
    payload: bytes
    timeout: float
    """Seconds that the caller waits; 0: for ever."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a call."""

    stream: int
    code: int
    """gRPC's; 0 is success."""
    message: str
    payload: bytes


class TooLong(Exception):
    """A message of one's own that does not fit into a frame."""

    def __init__(self, size: int) -> None:
        super().__init__(f"a message of {size} bytes does not fit into a frame, which holds {LONGEST}")
        self.size = size


def encode(stream: int, kind: int, data: bytes, flags: int = 0) -> bytes:
    """A frame's bytes; raises TooLong."""
    if len(data) > LONGEST:
        raise TooLong(len(data))
    return _HEADER.pack(len(data), stream, kind, flags) + data


class FrameDecoder:
    """Bytes in, frames out."""

    def __init__(self) -> None:
        self.failure = ""
        self._buffer = bytearray()
        self._skip = 0
        """Bytes still to come of a frame that is too long."""

    def receive(self, data: bytes) -> list[Frame]:
        """The frames that are complete with these bytes."""
        frames: list[Frame] = []
        if self.failure:
            return frames
        self._buffer += data
        at, end = 0, len(self._buffer)
        while True:
            if self._skip:
                skipped = min(self._skip, end - at)
                self._skip -= skipped
                at += skipped
            if end - at < _HEADER.size:
                break
            length, stream, kind, flags = _HEADER.unpack_from(self._buffer, at)
            if length >= 1 << 24:
                # "the first frame byte should always be zero": whoever sends another does not speak ttrpc.
                self.failure = f"a frame of {length} bytes"
                break
            if length > LONGEST:
                frames.append(Frame(stream, kind, flags, None))
                self._skip = length
                at += _HEADER.size
                continue
            if end - at - _HEADER.size < length:
                break
            begin = at + _HEADER.size
            at = begin + length
            frames.append(Frame(stream, kind, flags, bytes(self._buffer[begin:at])))
        del self._buffer[:at]
        return frames


class Caller:
    """The side that calls."""

    def __init__(self) -> None:
        self.failure = ""
        self._frames = FrameDecoder()
        self._next = 1
        self._waiting: set[int] = set()

    def call(self, service: str, method: str, payload: bytes, timeout_seconds: float = 0.0) -> tuple[int, bytes]:
        """The stream of a new call, and its bytes; raises TooLong, and then nothing was begun."""
        request = messages.Request(
            service=service, method=method, payload=payload, timeout_nano=int(timeout_seconds * 1_000_000_000)
        )
        stream = self._next
        data = encode(stream, REQUEST, request.SerializeToString())
        self._next += 2
        if self._next > _LAST_STREAM:
            self.failure = "the connection has used up its streams"
        self._waiting.add(stream)
        return stream, data

    def receive(self, data: bytes) -> list[Reply]:
        """The answers that are complete with these bytes."""
        replies = []
        for frame in self._frames.receive(data) if not self.failure else ():
            if frame.kind != RESPONSE:
                self.failure = f"a frame of kind {frame.kind} where answers are expected"
            elif frame.stream not in self._waiting:
                self.failure = f"an answer on stream {frame.stream}, where nothing was asked"
            else:
                self._waiting.discard(frame.stream)
                reply = _reply(frame)
                if reply is not None:
                    replies.append(reply)
                    continue
                self.failure = "an answer that is no ttrpc Response"
            return replies
        self.failure = self.failure or self._frames.failure
        return replies


def _reply(frame: Frame) -> Reply | None:
    if frame.data is None:
        return Reply(frame.stream, RESOURCE_EXHAUSTED, f"the answer is longer than {LONGEST} bytes", b"")
    try:
        response = messages.Response.FromString(frame.data)
    except DecodeError:
        return None
    return Reply(frame.stream, response.status.code, response.status.message, response.payload)


class Callee:
    """The side that is called."""

    def __init__(self) -> None:
        self.failure = ""
        self._frames = FrameDecoder()
        self._highest = 0
        self._refused: list[bytes] = []
        self._open: set[int] = set()

    @property
    def unanswered(self) -> int:
        """Calls that `receive` has returned and nobody has answered."""
        return len(self._open)

    def receive(self, data: bytes) -> list[Call]:
        """The calls that are complete with these bytes."""
        calls = []
        for frame in self._frames.receive(data) if not self.failure else ():
            if frame.kind != REQUEST:
                self.failure = f"a frame of kind {frame.kind} where calls are expected"
            elif frame.stream % 2 == 0 or frame.stream <= self._highest:
                self.failure = f"a call on stream {frame.stream} after one on {self._highest}"
            else:
                self._highest = frame.stream
                call = self._call(frame)
                if call is not None:
                    self._open.add(call.stream)
                    calls.append(call)
            if self.failure:
                return calls
        self.failure = self.failure or self._frames.failure
        return calls

    def _call(self, frame: Frame) -> Call | None:
        """The call, or None if it is refused or no call."""
        if frame.data is None:
            self._refuse(frame.stream, RESOURCE_EXHAUSTED, f"the message is longer than {LONGEST} bytes")
            return None
        if frame.flags:
            # "a request with empty flags indicates a unary request"
            self._refuse(frame.stream, UNIMPLEMENTED, "only unary calls are served")
            return None
        try:
            request = messages.Request.FromString(frame.data)
        except DecodeError:
            self.failure = "a call that is no ttrpc Request"
            return None
        return Call(frame.stream, request.service, request.method, request.payload, max(0, request.timeout_nano) / 1e9)

    def _refuse(self, stream: int, code: int, message: str) -> None:
        self._refused.append(_response(stream, code, message))

    def refusals(self) -> list[bytes]:
        """What is to be sent to calls that `receive` has not returned, a frame each; once."""
        refused, self._refused = self._refused, []
        return refused

    def answer(self, stream: int, payload: bytes) -> bytes:
        """The bytes of a successful answer; raises TooLong."""
        data = encode(stream, RESPONSE, messages.Response(payload=payload).SerializeToString())
        self._open.discard(stream)
        return data

    def refuse(self, stream: int, code: int, message: str) -> bytes:
        """The bytes of an answer that the call has failed."""
        self._open.discard(stream)
        return _response(stream, code, message)


def _response(stream: int, code: int, message: str) -> bytes:
    status = messages.Status(code=code, message=message[:MESSAGE_CHARACTERS])
    return encode(stream, RESPONSE, messages.Response(status=status).SerializeToString())


MESSAGE_CHARACTERS: Final = 4096
"""Of an error's message that is sent."""
