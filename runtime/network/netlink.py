"""What netlink messages look like: headers, attributes, and numbers that pyroute2 does not name (netlink(7), rtnetlink(7)).

No input or output: `listing` reads long answers with it, `requests` writes what a pod's start waits for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

ANSWER_SECONDS: Final = 10.0
"""For an answer of the kernel's, which is there at once unless something is very wrong."""

NETLINK_CAP_ACK, NLMSGERR_ATTR_MSG = 10, 1
RTEXT_FILTER_SKIP_STATS: Final = 8
RT_TABLE_MAIN, RTN_UNICAST = 254, 1
IFF_UP: Final = 1

HEADER = struct.Struct("=IHHII")
LINK = struct.Struct("=BxHiII")
ROUTE = struct.Struct("=BBBBBBBBI")


class Message(NamedTuple):
    """One of those in a datagram."""

    kind: int
    flags: int
    payload: bytes

    @property
    def error(self) -> int:
        """Of an NLMSG_ERROR, the number of the error, 0 for none."""
        return -int(struct.unpack_from("=i", self.payload)[0])


def messages(datagram: bytes) -> Iterator[Message]:
    """The whole messages in a datagram."""
    offset = 0
    while offset + HEADER.size <= len(datagram):
        length, kind, flags, _, _ = HEADER.unpack_from(datagram, offset)
        if length < HEADER.size:
            return
        yield Message(kind, flags, datagram[offset + HEADER.size : offset + length])
        offset += _aligned(length)


def attributes(message: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Kinds and values of the attributes from `offset` on."""
    while offset + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, message[offset + 4 : offset + length]
        offset += _aligned(length)


def attribute(kind: int, value: bytes) -> bytes:
    """One, filled up to whole words."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    """One of 32 bits."""
    return attribute(kind, struct.pack("=I", value))


def _aligned(length: int) -> int:
    return (length + 3) & ~3
