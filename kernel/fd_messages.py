"""Messages with descriptors over Unix sockets, as `socket.send_fds` and `recv_fds`, for sockets of the plain class.

`socket.socket` is a class in Python that makes enums of its family and type. What it is derived from, `socket.SocketType`,
has all that a shim needs, and looks at fewer objects: each of them is on a page that a forked process has to copy.
"""

from __future__ import annotations

import socket
import struct

_RIGHTS = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_UNIX, _SEQPACKET = int(socket.AF_UNIX), int(socket.SOCK_SEQPACKET)
_CLOEXEC = int(socket.SOCK_CLOEXEC)
_SIZE = struct.calcsize("i")


def send(channel: socket.SocketType, data: bytes, fds: list[int]) -> None:
    """One message; the descriptors stay open here."""
    if fds:
        channel.sendmsg((data,), ((*_RIGHTS, struct.pack(f"{len(fds)}i", *fds)),))
    else:
        channel.send(data)


def receive(channel: socket.SocketType, size: int, most: int) -> tuple[bytes, list[int], int]:
    """(message, up to `most` descriptors, flags: `socket.MSG_TRUNC` for a message that was longer than `size`)."""
    data, control, flags, _ = channel.recvmsg(size, socket.CMSG_LEN(most * _SIZE))
    fds: list[int] = []
    for level, kind, body in control:
        if (level, kind) == _RIGHTS:
            fds += struct.unpack(f"{len(body) // _SIZE}i", body[: len(body) // _SIZE * _SIZE])
    return data, fds, flags


def listener() -> socket.SocketType:
    """A SOCK_SEQPACKET socket, close-on-exec, yet to be bound."""
    return socket.SocketType(_UNIX, _SEQPACKET | _CLOEXEC)


def accept(listening: socket.SocketType) -> socket.SocketType:
    """A connection, close-on-exec. Raises OSError."""
    fd, _ = listening._accept()  # type: ignore[attr-defined]  # `accept` is the derived class's
    return socket.SocketType(_UNIX, _SEQPACKET, 0, fd)
