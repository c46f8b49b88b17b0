"""NRI's multiplexer without I/O: several connections over one stream of bytes.

A frame has eight bytes of header, big-endian, and then data:

    0            4        8
    | connection | length | data …

Connections are neither opened nor closed: both sides know which there are. Connection 0 is reserved; a frame for one that is
not known here is dropped, as in NRI's own implementation.

That implementation reads each connection through a buffer of 4096 bytes, and what it reads must take a frame as a whole; its
queue holds 256 frames. So a message is cut as its bufio.Writer cuts it: the first 4096 bytes, then the rest as one frame.
"""

from __future__ import annotations

import struct
from typing import Final

PLUGIN: Final = 1
"""The connection on which the runtime calls the plugin."""
RUNTIME: Final = 2
"""The connection on which the plugin calls the runtime."""

FIRST: Final = 4096
LONGEST: Final = (4 << 20) + 10
"""Bytes of a frame: a whole message of ttrpc, which is what NRI's implementation sends at most."""

UNKNOWN_BYTES: Final = 1 << 20
"""For connections that are not known here, together; more is no plugin of a later version but somebody who floods."""

_HEADER: Final = struct.Struct(">II")


def encode(connection: int, message: bytes) -> bytes:
    """A message of ttrpc as one frame or two."""
    if len(message) <= FIRST:
        return _HEADER.pack(connection, len(message)) + message
    rest = len(message) - FIRST
    return b"".join(
        (_HEADER.pack(connection, FIRST), message[:FIRST], _HEADER.pack(connection, rest), message[FIRST:]),
    )


class Demultiplexer:
    """Bytes in, (connection, data) out; of a long frame as it comes, for what it carries is a stream anyway."""

    def __init__(self, known: tuple[int, ...] = (PLUGIN, RUNTIME)) -> None:
        self.failure = ""
        self._known = known
        self._buffer = bytearray()
        self._connection = 0
        self._left = 0
        """Bytes still to come of the frame that has begun."""
        self._unknown = 0

    def receive(self, data: bytes) -> list[tuple[int, bytes]]:
        """What these bytes carry for the connections that are known."""
        found: list[tuple[int, bytes]] = []
        if self.failure:
            return found
        self._buffer += data
        at, end = 0, len(self._buffer)
        while True:
            if self._left:
                taken = min(self._left, end - at)
                if taken:
                    self._pass_on(found, bytes(self._buffer[at : at + taken]))
                at += taken
                self._left -= taken
            if self._left or self.failure or end - at < _HEADER.size:
                break
            self._connection, self._left = _HEADER.unpack_from(self._buffer, at)
            at += _HEADER.size
            if self._left > LONGEST:
                self.failure = f"a frame of {self._left} bytes"
                break
        del self._buffer[:at]
        return found

    def _pass_on(self, found: list[tuple[int, bytes]], data: bytes) -> None:
        if self._connection in self._known:
            found.append((self._connection, data))
            return
        self._unknown += len(data)
        if self._unknown > UNKNOWN_BYTES:
            self.failure = f"more than {UNKNOWN_BYTES} bytes for connections that there are not"
