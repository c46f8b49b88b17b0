"""Directory trees that are not ours to trust: walked by descriptors, whatever their depth and size.

Names are looked up one component at a time, relative to the directory that they are in, so no path is ever too long; going
down takes one descriptor, going up is `..`, checked against where the walk came from. So nothing recurses, one or two
descriptors are open at a time, and memory is 16 bytes for each level. Symbolic links are not followed and mounts not
entered. What a directory has is read in the kernel's own pieces (getdents64), and a walk that comes back to a directory goes
on at its cookie: a directory of a million entries is never held in memory.
"""

from __future__ import annotations

import array
import errno
import os
import stat
from collections.abc import Iterator

from kernel import syscalls

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Moved(Exception):
    """Somebody has moved a directory while the walk was in it: there is no way back up."""


def walk(root: int) -> Iterator[tuple[int, bytes, os.stat_result]]:
    """Everything below an open directory, each directory before what is in it: descriptor of its parent, name, lstat.

    What goes away meanwhile is left out. The descriptor is the walk's and good until the next step.

    Raises:
        Moved: there is no way back; what was seen until then is not all.
        OSError: a directory cannot be read.
    """
    device = os.fstat(root).st_dev
    above = array.array("q")
    fd = os.open(".", _OPEN, dir_fd=root)
    cookie = 0
    try:
        while True:
            child, after = -1, 0
            for name, after in syscalls.directory_entries(fd, cookie):  # noqa: B007  used below
                try:
                    status = os.lstat(name, dir_fd=fd)
                except FileNotFoundError:
                    continue
                yield fd, name, status
                if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                    child = _down(fd, name)
                    if child >= 0:
                        break
            if child >= 0:
                above.extend((signed(os.fstat(fd).st_ino), after))
                os.close(fd)
                fd, cookie = child, 0
            elif not above:
                return
            else:
                cookie, inode = above.pop(), above.pop()
                fd = up(fd, device, inode)
    finally:
        if fd >= 0:
            os.close(fd)


def enter(directory: int, name: bytes) -> int:
    """A descriptor of a directory in another one; OSError EXDEV where it is a mount, also one of the same file system."""
    return syscalls.openat2(directory, name, _OPEN, syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS)


def _down(fd: int, name: bytes) -> int:
    """A descriptor of a directory, -1 where it has gone, has become something else, or is mounted."""
    try:
        return enter(fd, name)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
            return -1
        raise


def up(fd: int, device: int, inode: int) -> int:
    """The parent's descriptor in place of `fd`, which is closed."""
    try:
        parent = os.open("..", _OPEN, dir_fd=fd)
    except FileNotFoundError:
        parent = -1
    status = os.fstat(parent) if parent >= 0 else None
    if status is None or (status.st_dev, signed(status.st_ino)) != (device, inode):
        if parent >= 0:
            os.close(parent)
        raise Moved
    os.close(fd)
    return parent


def signed(inode: int) -> int:
    """As it fits into an array of 64-bit numbers."""
    return inode - (1 << 64) if inode >> 63 else inode
