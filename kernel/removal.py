"""Removing directory trees of crisp's own, and nothing that lies on another mount.

A mount below such a directory is somebody else's: a volume that was not unmounted, or a bind mount of an administrator's.
What is mounted there must never be deleted, so the walk does not enter it (openat2, RESOLVE_NO_XDEV) and says where it
stopped. Depth and size are whatever a container or an image has made them: see trees.py for how that is no matter. A
directory to which the removal comes back is read again from its start: what is still there has not been removed.
"""

from __future__ import annotations

import array
import errno
import os
import stat
from contextlib import suppress

from kernel import syscalls, trees

_ROUNDS = 5


def remove_tree(path: str | bytes | os.PathLike[str]) -> None:
    """Remove a directory and all that is in it, however deep; success if there is none.

    Raises OSError: EBUSY if something is mounted at or below `path`, of which everything else may be gone by then, or if
    its directories are moved all the time; ENOTDIR for what is none.
    """
    name = os.path.abspath(os.fsencode(path))
    try:
        parent = os.open(os.path.dirname(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for left in reversed(range(_ROUNDS)):
            try:
                _remove(parent, os.path.basename(name))
            except FileNotFoundError:
                return
            except trees.Moved:
                if not left:
                    raise OSError(errno.EBUSY, "it was moved while it was being removed", os.fsdecode(name)) from None
            except OSError as error:
                # Somebody has made something in it since.
                if error.errno != errno.ENOTEMPTY or not left:
                    raise
            else:
                return
    finally:
        os.close(parent)


def discard_tree(path: str | os.PathLike[str]) -> None:
    """As `remove_tree`, for callers that look themselves whether it is gone."""
    with suppress(OSError):
        remove_tree(path)


def _remove(parent: int, base: bytes) -> None:
    """One directory: from its first entry that can go at once down to the last that cannot, and up again."""
    above = array.array("q")
    fd = _enter(parent, base)
    device = os.fstat(fd).st_dev
    try:
        while True:
            name = _clear(fd)
            if name is not None:
                try:
                    child = _enter(fd, name)
                except FileNotFoundError:
                    continue
                above.append(trees.signed(os.fstat(fd).st_ino))
                os.close(fd)
                fd = child
            elif not above:
                break
            else:
                fd = trees.up(fd, device, above.pop())
    finally:
        os.close(fd)
    os.rmdir(base, dir_fd=parent)


def _clear(fd: int) -> bytes | None:
    """Removes what can be removed at once; returns the first directory that is not empty."""
    for name, _cookie in syscalls.directory_entries(fd, 0):
        try:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                os.unlink(name, dir_fd=fd)
                continue
            os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY) and _is_directory(fd, name):
                return name
            raise OSError(error.errno, error.strerror, _shown(fd, name)) from None
    return None


def _is_directory(fd: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode)


def _enter(directory: int, name: bytes) -> int:
    try:
        return trees.enter(directory, name)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        if error.errno == errno.EXDEV:
            raise OSError(errno.EBUSY, "something is mounted there", _shown(directory, name)) from None
        raise OSError(error.errno, error.strerror, _shown(directory, name)) from None


def _shown(directory: int, name: bytes) -> str:
    """The whole path, for an error; the name alone where the path is longer than the kernel tells."""
    try:
        return os.path.join(os.readlink(f"/proc/self/fd/{directory}"), os.fsdecode(name))
    except OSError:
        return os.fsdecode(name)
