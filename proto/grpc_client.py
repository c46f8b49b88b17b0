"""gRPC over HTTP/2, the client's half, without I/O: calls of one connection.

    connection = Connection(message_bytes)
    stream = connection.call(path, message, seconds)
    send(connection.to_send())
    for event in connection.receive(data): Message or Ended, with the stream they are of

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, RFC 7540. A call has one message, and its answer is one or
several; that is all that CRI knows. Nothing is compressed, and nothing is pushed. What a server does wrong ends the
connection and with it all calls (`closed`), never with an exception.

The command could have all of this from the package grpc, and did: to load that takes longer than everything else that a
short command does.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from proto import hpack
from proto.errors import Code

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER: Final = 9

DATA, HEADERS, _, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20

SETTING_ENABLE_PUSH, SETTING_WINDOW = 2, 4

FRAME_BYTES: Final = 16384
"""Of a frame's content, at most: we allow no more (4.2), and need no more that a server may allow."""

FIRST_WINDOW: Final = 65535
LARGEST_WINDOW: Final = (1 << 31) - 1
REFILL_BYTES: Final = 1 << 30
"""After so much the server may send as much again."""

BLOCK_BYTES: Final = 1 << 16
"""Of headers or trailers."""

NO_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 7, 8, 11
_OF_RESET: Final = {
    NO_ERROR: Code.INTERNAL,
    REFUSED_STREAM: Code.UNAVAILABLE,
    CANCEL: Code.CANCELLED,
    ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
}
"""Others are INTERNAL; PROTOCOL-HTTP2, "Errors"."""

STATUSES: Final = (
    *(None, Code.CANCELLED, Code.UNKNOWN, Code.INVALID_ARGUMENT, Code.DEADLINE_EXCEEDED, Code.NOT_FOUND),
    *(Code.ALREADY_EXISTS, Code.PERMISSION_DENIED, Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION, Code.ABORTED),
    *(Code.UNKNOWN, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.UNKNOWN, Code.UNAUTHENTICATED),
)
"""By their numbers; of OUT_OF_RANGE and DATA_LOSS nobody here speaks."""

NO_TABLE: Final = b"\x20"
"""What we write enters no table: a server that allows none, now or later, wants that said (RFC 7541, 4.2)."""

_QUOTED: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


class Message:
    """A whole message of an answer."""

    __slots__ = ("data", "stream")

    def __init__(self, stream: int, data: bytes) -> None:
        self.stream, self.data = stream, data


class Ended:
    """A call is over; well if `code` is None."""

    __slots__ = ("code", "stream", "text")

    def __init__(self, stream: int, code: Code | None, text: str = "") -> None:
        self.stream, self.code, self.text = stream, code, text


Event = Message | Ended


class _BadServer(Exception):
    """It does not keep to HTTP/2."""


class _Stream:
    """A call that is not over."""

    __slots__ = ("answer", "taken", "to_send", "window")

    def __init__(self, to_send: bytes, window: int) -> None:
        self.to_send, self.window = memoryview(to_send), window
        self.answer, self.taken = bytearray(), 0


class Connection:
    """Many calls may be under way; each is answered by Messages and one Ended."""

    def __init__(self, message_bytes: int) -> None:
        """`message_bytes`: no message of an answer may be greater."""
        self.closed = False
        """No call may be begun any more; those that are under way may still be answered."""
        self._message_bytes = message_bytes
        settings = struct.pack(">HIHI", SETTING_ENABLE_PUSH, 0, SETTING_WINDOW, LARGEST_WINDOW)
        self._out = bytearray(PREFACE + _frame(SETTINGS, 0, 0, settings))
        self._out += _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", LARGEST_WINDOW - FIRST_WINDOW))
        self._in = bytearray()
        self._headers = hpack.Decoder()
        self._block: tuple[int, bool, bytearray] | None = None
        """Of headers that go on in the next frame: their stream, whether they end it, and what there is of them."""
        self._streams: dict[int, _Stream] = {}
        self._next = 1
        self._window = self._first_window = FIRST_WINDOW
        self._taken = 0

    @property
    def calls(self) -> int:
        """Under way."""
        return len(self._streams)

    def call(self, path: str, message: bytes, seconds: float | None = None) -> int:
        """Begin a call of a method, `/package.Service/Method`; the stream that it is. `seconds`: its deadline."""
        number, self._next = self._next, self._next + 2
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"localhost")]
        headers += [(b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"user-agent", b"crisp")]
        if seconds is not None:  # at most eight digits
            headers.append((b"grpc-timeout", b"%dm" % min(99_999_999, max(1, round(seconds * 1000)))))
        block = b"".join(hpack.literal(*header) for header in headers)
        self._out += _frame(HEADERS, END_HEADERS, number, NO_TABLE + block if number == 1 else block)
        self._streams[number] = _Stream(struct.pack(">BI", 0, len(message)) + message, self._first_window)
        self._send_messages()
        return number

    def to_send(self) -> bytes:
        """What is to go to the server; it is forgotten here."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> list[Event]:
        """What follows of bytes that have come; no bytes are the connection's end."""
        if not data:
            return self._end(Code.UNAVAILABLE, "the daemon has ended the connection")
        self._in += data
        events: list[Event] = []
        try:
            while len(self._in) >= FRAME_HEADER:
                length = int.from_bytes(self._in[:3], "big")
                if length > FRAME_BYTES:
                    raise _BadServer(f"a frame of {length} bytes")
                if len(self._in) < FRAME_HEADER + length:
                    break
                kind, flags, stream = self._in[3], self._in[4], int.from_bytes(self._in[5:9], "big") & LARGEST_WINDOW
                content = bytes(self._in[FRAME_HEADER : FRAME_HEADER + length])
                del self._in[: FRAME_HEADER + length]
                events += self._handle(kind, flags, stream, content)
        except (_BadServer, hpack.HeaderError) as error:
            events += self._end(Code.INTERNAL, f"the daemon speaks no HTTP/2 that can be understood: {error}")
        self._send_messages()
        return events

    def _handle(self, kind: int, flags: int, stream: int, content: bytes) -> list[Event]:
        if self._block is not None and (kind != CONTINUATION or stream != self._block[0]):
            raise _BadServer("headers that do not go on")
        if kind == DATA:
            return self._data(flags, stream, content)
        if kind in (HEADERS, CONTINUATION):
            return self._header(kind, flags, stream, content)
        if kind == RST_STREAM and len(content) == 4:
            number = int.from_bytes(content, "big")
            return self._over(stream, _OF_RESET.get(number, Code.INTERNAL), f"the stream was reset, error {number}")
        if kind == GOAWAY and len(content) >= 8:
            return self._go_away(int.from_bytes(content[:4], "big") & LARGEST_WINDOW)
        if kind == SETTINGS and len(content) % 6 == 0:
            if not flags & ACK:
                self._settings(content)
        elif kind == PING and len(content) == 8:
            if not flags & ACK:
                self._out += _frame(PING, ACK, 0, content)
        elif kind == WINDOW_UPDATE and len(content) == 4:
            self._widen(stream, int.from_bytes(content, "big") & LARGEST_WINDOW)
        elif kind in (RST_STREAM, GOAWAY, SETTINGS, PING, WINDOW_UPDATE, PUSH_PROMISE):
            raise _BadServer(f"a frame of type {kind} with {len(content)} bytes")
        return []  # 4.1: what is of no known type is passed over

    def _data(self, flags: int, stream: int, content: bytes) -> list[Event]:
        self._taken = self._refilled(0, self._taken + len(content))
        call = self._streams.get(stream)
        if call is None:
            return []  # it was cancelled
        call.taken = self._refilled(stream, call.taken + len(content))
        call.answer += _unpadded(flags, content)
        events: list[Event] = []
        while len(call.answer) >= 5:
            compressed, length = struct.unpack(">BI", call.answer[:5])
            if compressed:
                return [*events, *self._drop(stream, Code.INTERNAL, "a message is compressed, which nobody has asked for")]
            if length > self._message_bytes:
                text = f"the answer has {length} bytes: more than {self._message_bytes}"
                return [*events, *self._drop(stream, Code.RESOURCE_EXHAUSTED, text)]
            if len(call.answer) < 5 + length:
                break
            events.append(Message(stream, bytes(call.answer[5 : 5 + length])))
            del call.answer[: 5 + length]
        if flags & END_STREAM:  # without trailers
            events += self._over(stream, Code.INTERNAL, "the answer has no status")
        return events

    def _refilled(self, stream: int, taken: int) -> int:
        """Let the server go on before its window ends, which is as large as there are; how much is yet to be given back."""
        if taken < REFILL_BYTES:
            return taken
        self._out += _frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", taken))
        return 0

    def _header(self, kind: int, flags: int, stream: int, content: bytes) -> list[Event]:
        if kind == CONTINUATION:
            if self._block is None:
                raise _BadServer("headers go on that have not begun")
            _, ends, block = self._block
            block += content
        else:
            content = _unpadded(flags, content)
            ends, block = bool(flags & END_STREAM), bytearray(content[5:] if flags & PRIORITIZED else content)
        if len(block) > BLOCK_BYTES:
            raise _BadServer(f"headers of more than {BLOCK_BYTES} bytes")
        self._block = None if flags & END_HEADERS else (stream, ends, block)
        if self._block is not None:
            return []
        headers = dict(self._headers.decode(bytes(block)))
        if ends:
            return self._over(stream, *_status(headers))
        if (status := headers.get(b":status", b"200")) != b"200" and stream in self._streams:
            return self._drop(stream, Code.UNKNOWN, f"HTTP status {status.decode(errors='replace')}")
        return []

    def _settings(self, content: bytes) -> None:
        for key, value in struct.iter_unpack(">HI", content):
            if key == SETTING_WINDOW:
                if value > LARGEST_WINDOW:
                    raise _BadServer(f"a window of {value} bytes")
                for call in self._streams.values():  # 6.9.2: it may become negative
                    call.window += value - self._first_window
                self._first_window = value
        self._out += _frame(SETTINGS, ACK, 0, b"")

    def _widen(self, stream: int, count: int) -> None:
        if not stream:
            self._window += count
        elif (call := self._streams.get(stream)) is not None:
            call.window += count

    def _go_away(self, last: int) -> list[Event]:
        """6.8: what is above `last` was not begun, and the rest may be answered."""
        self.closed = True
        events: list[Event] = []
        for stream in [stream for stream in self._streams if stream > last]:
            events += self._over(stream, Code.UNAVAILABLE, "the daemon is ending")
        return events

    def _send_messages(self) -> None:
        """As much of them as the server wants to have."""
        for number, call in self._streams.items():
            while call.to_send and (count := min(len(call.to_send), FRAME_BYTES, call.window, self._window)) > 0:
                part, call.to_send = call.to_send[:count], call.to_send[count:]
                call.window -= count
                self._window -= count
                self._out += _frame(DATA, 0 if call.to_send else END_STREAM, number, part)

    def _over(self, stream: int, code: Code | None, text: str) -> list[Event]:
        call = self._streams.pop(stream, None)
        if call is None:
            return []
        if call.to_send:
            self._reset(stream)  # the server has said all, and does not want the rest
        if code is None and call.answer:
            code, text = Code.INTERNAL, "the answer ends within a message"
        return [Ended(stream, code, text)]

    def _drop(self, stream: int, code: Code, text: str) -> list[Event]:
        """It is over for us."""
        self._streams.pop(stream)
        self._reset(stream)
        return [Ended(stream, code, text)]

    def _reset(self, stream: int) -> None:
        self._out += _frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL))

    def _end(self, code: Code, text: str) -> list[Event]:
        self.closed = True
        streams = [*self._streams]
        self._streams.clear()
        self._in.clear()
        return [Ended(stream, code, text) for stream in streams]


def _frame(kind: int, flags: int, stream: int, content: bytes | memoryview) -> bytes:
    return struct.pack(">I", len(content) << 8 | kind) + struct.pack(">BI", flags, stream) + content


def _unpadded(flags: int, content: bytes) -> bytes:
    if not flags & PADDED:
        return content
    if not content or content[0] >= len(content):
        raise _BadServer("more padding than there is")
    return content[1 : len(content) - content[0]]


def _status(trailers: dict[bytes, bytes]) -> tuple[Code | None, str]:
    """What a call has come to."""
    number = trailers.get(b"grpc-status", b"")
    if not number.isdigit():
        status = trailers.get(b":status", b"?").decode(errors="replace")
        return Code.UNKNOWN, f"the answer has no status; that of HTTP is {status}"
    code = STATUSES[int(number)] if len(number) < 3 and int(number) < len(STATUSES) else Code.UNKNOWN
    # PROTOCOL-HTTP2, "Percent-Encoded"; what is no such is taken as it is.
    text = _QUOTED.sub(lambda quoted: bytes.fromhex(quoted[1].decode()), trailers.get(b"grpc-message", b""))
    return code, text.decode(errors="replace")
