"""Places in the file system for sockets of one's own."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager


def make_room(path: str) -> None:
    """Unlink a socket that nobody listens on any more, as one that was killed leaves it. Success if nothing is there.

    Raises OSError: EEXIST if it is no socket, EADDRINUSE if somebody listens on it. Neither is removed.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "it exists and is not a socket", path)
    except FileNotFoundError:
        return
    if has_listener(path):
        raise OSError(errno.EADDRINUSE, "another program listens on it", path)
    os.unlink(path)


def has_listener(path: str) -> bool:
    """Whether some program has bound the socket and still has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as asker:
        error = asker.connect_ex(path)
    # EAGAIN: its queue is full. EPROTOTYPE: it is of another kind than streams, so somebody has bound it.
    return error in (0, errno.EAGAIN, errno.EPROTOTYPE)


@contextmanager
def bound_for_owner() -> Iterator[None]:
    """What is bound in here is its owner's alone from the first moment on. By the umask, so it is the whole process's."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
