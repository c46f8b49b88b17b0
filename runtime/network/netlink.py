"""Netlink (RFC 3549 and linux/netlink.h): messages as bytes, and a blocking socket that sends them in
batches.

    nlmsghdr | family header (ifinfomsg, nfgenmsg, …) | attribute, attribute, …        each part padded to 4
    bytes

Written out here, and not taken from a library, because a pod's whole network is some fifteen messages: packed
by `struct` and sent two system calls at a time they cost a tenth of a millisecond, and nothing is imported
for them.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400

NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF

SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
NETLINK_GET_STRICT_CHK: Final = 12

NLM_F_CAPPED: Final = 0x100
NLM_F_ACK_TLVS: Final = 0x200
NLMSGERR_ATTR_MSG: Final = 1

RECEIVE_BYTES: Final = 256 * 1024
"""The kernel builds dumps in pieces of at most 32 KiB; a receive buffer below that loses messages."""

DUMP_TRIES: Final = 10
"""How often a dump is repeated that the kernel reports as torn by a change in its midst."""

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")


class NetlinkError(OSError):
    """The kernel refused a request; `strerror` ends with its own words (extended ACK) where it has any."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: `kind` is nlmsg_type, `body` the family header with the attributes."""

    kind: int
    flags: int
    body: bytes


def attribute(kind: int, payload: bytes) -> bytes:
    """Encode one attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *members: bytes) -> bytes:
    """Encode an attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(members))


def text(kind: int, value: str) -> bytes:
    """Encode a NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    """Encode one byte."""
    return attribute(kind, bytes((value,)))


def u32(kind: int, value: int) -> bytes:
    """Encode a 32-bit number in the host's byte order."""
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Decode attributes by kind; of a kind that repeats the last one stays. Stops at the first malformed
    one."""
    return dict(attribute_list(data, offset))


def attribute_list(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Decode attributes in their order."""
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def string(payload: bytes) -> str:
    """A string attribute's text."""
    return payload.rstrip(b"\0").decode(errors="replace")


def _split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _error(flags: int, body: bytes) -> NetlinkError | None:
    """Decode an nlmsgerr: int error, the request's header, perhaps the request, perhaps what the kernel
    says."""
    (negative,) = struct.unpack_from("=i", body)
    if negative == 0:
        return None
    message = os.strerror(-negative)
    if flags & NLM_F_ACK_TLVS:
        (request,) = struct.unpack_from("=I", body, 4)
        offset = 4 + _HEADER.size if flags & NLM_F_CAPPED else 4 + ((request + 3) & ~3)
        if words := attributes(body, offset).get(NLMSGERR_ATTR_MSG):
            message = f"{message}: {string(words)}"
    return NetlinkError(-negative, message)


class NetlinkSocket:
    """A blocking netlink socket, for one thread at a time.

    It belongs to the network namespace in which it was opened, wherever it is used.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            if protocol == NETLINK_ROUTE:
                # Dumps may then be narrowed by header fields and attributes.
                self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._socket.close()

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pack(self, message: Message, flags: int) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        body = message.body
        flags |= message.flags | NLM_F_REQUEST
        return _HEADER.pack(_HEADER.size + len(body), message.kind, flags, self._sequence, 0) + body

    def request(self, *messages: Message) -> None:
        """Have messages carried out in their order, in one system call; the kernel goes on past a failed one.

        Raises NetlinkError for the first that failed.
        """
        for error in self.outcomes(messages):
            if error is not None:
                raise error

    def outcomes(self, messages: Sequence[Message]) -> list[NetlinkError | None]:
        """Like `request`, but report each message's error, or None."""
        data = bytearray()
        waiting: dict[int, int] = {}
        for position, message in enumerate(messages):
            data += self._pack(message, NLM_F_ACK)
            waiting[self._sequence] = position
        self._socket.send(data)
        results: list[NetlinkError | None] = [None] * len(messages)
        while waiting:
            for kind, flags, sequence, body in self._receive():
                if kind == NLMSG_ERROR and sequence in waiting:
                    results[waiting.pop(sequence)] = _error(flags, body)
        return results

    def transaction(self, begin: Message, messages: Iterable[Message], end: Message) -> None:
        """Send a batch that is carried out as a whole or not at all (nfnetlink's BATCH_BEGIN and BATCH_END).

        Raises NetlinkError, after which nothing has changed.
        """
        data = bytearray(self._pack(begin, 0))
        waiting = set()
        for message in messages:
            data += self._pack(message, NLM_F_ACK)
            waiting.add(self._sequence)
        data += self._pack(end, 0)
        self._socket.send(data)
        first: NetlinkError | None = None
        while waiting:
            for kind, flags, sequence, body in self._receive():
                if kind != NLMSG_ERROR:
                    continue
                error = _error(flags, body)
                first = first or error
                if error is not None and sequence not in waiting:
                    raise error  # the batch itself was refused: nothing more follows
                waiting.discard(sequence)
        if first is not None:
            raise first

    def get(self, message: Message) -> Message:
        """Ask for one object. Raises NetlinkError, ENODEV or ENOENT if it does not exist."""
        self._socket.send(self._pack(message, 0))
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == NLMSG_ERROR:
                    raise _error(flags, body) or NetlinkError(errno.EPROTO, "an acknowledgement in place of an object")
                return Message(kind, flags, body)

    def dump(self, message: Message) -> list[Message]:
        """Ask for all objects of a kind; repeated when they change in the middle of it."""
        for _ in range(DUMP_TRIES):
            objects, torn = self._dump_once(message)
            if not torn:
                return objects
        raise NetlinkError(errno.EINTR, "the objects kept changing while they were listed")

    def _dump_once(self, message: Message) -> tuple[list[Message], bool]:
        self._socket.send(self._pack(message, NLM_F_DUMP))
        objects: list[Message] = []
        torn = False
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                torn = torn or bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_ERROR:
                    raise _error(flags, body) or NetlinkError(errno.EPROTO, "an acknowledgement in place of a list")
                if kind == NLMSG_DONE:
                    (negative,) = struct.unpack_from("=i", body) if len(body) >= 4 else (0,)
                    if negative < 0:
                        raise NetlinkError(-negative, os.strerror(-negative))
                    return objects, torn
                objects.append(Message(kind, flags, body))

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        return _split(self._socket.recv(RECEIVE_BYTES))
