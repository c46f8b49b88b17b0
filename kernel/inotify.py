"""inotify(7): learning that a directory's entries have changed."""

from __future__ import annotations

import contextlib
import ctypes
import os

from kernel.syscalls import oserror

# <sys/inotify.h>
IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO = 0x2, 0x8, 0x40, 0x80
IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = 0x100, 0x200, 0x400, 0x800
IN_ONLYDIR = 0x1000000

ENTRIES = IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
"""A directory's entries come, go or are written, or it goes itself."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


def watch(path: str, mask: int = ENTRIES) -> int:
    """An fd that becomes readable when something of `mask` happens at `path`; nonblocking, the caller closes it."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise oserror("inotify_init1")
    if _libc.inotify_add_watch(fd, os.fsencode(path), mask) < 0:
        error = oserror("inotify_add_watch", path)
        os.close(fd)
        raise error
    return fd


def add(fd: int, path: str, mask: int = ENTRIES) -> None:
    """Have an fd of `watch` tell of another place too. Raises OSError."""
    if _libc.inotify_add_watch(fd, os.fsencode(path), mask) < 0:
        raise oserror("inotify_add_watch", path)


def drain(fd: int) -> None:
    """Read all events; which they were does not matter to those who look for themselves."""
    with contextlib.suppress(BlockingIOError):
        while os.read(fd, 65536):
            continue
