"""Removing directory trees of crisp's own, and nothing that lies on another mount.

A mount below such a directory is somebody else's: a volume that was not unmounted, or a bind mount of an administrator's.
What is mounted there must never be deleted, so the walk does not enter it (openat2, RESOLVE_NO_XDEV) and says where it
stopped.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from kernel import syscalls

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WITHIN = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a directory and all that is in it, however deep; success if there is none.

    Raises OSError: EBUSY if something is mounted at or below `path`, of which everything else may be gone by then.
    """
    path = os.fspath(path).rstrip("/")
    try:
        parent = os.open(os.path.dirname(path) or ".", _DIRECTORY)
    except FileNotFoundError:
        return
    here = parent
    try:
        names: list[str] = []
        """From the parent down to the directory that is being emptied."""
        waiting = [[os.path.basename(path)]]
        """What is still to be removed of each of those levels."""
        while waiting[-1] or names:
            where = "/".join([os.path.dirname(path), *names])
            if waiting[-1]:
                name = waiting[-1].pop()
                child = _enter(here, name, f"{where}/{name}")
                if child < 0:
                    continue
                here = _go(here, child, parent)
                names.append(name)
                waiting.append(_unlink_files(here, f"{where}/{name}"))
                continue
            above = os.open("..", _DIRECTORY, dir_fd=here) if len(names) > 1 else parent
            _check_same(above, names[-1], here)
            here = _go(here, above, parent)
            waiting.pop()
            os.rmdir(names.pop(), dir_fd=here)
    finally:
        if here != parent:
            os.close(here)
        os.close(parent)


def discard_tree(path: str | os.PathLike[str]) -> None:
    """As `remove_tree`, for callers that look themselves whether it is gone."""
    with suppress(OSError):
        remove_tree(path)


def _go(here: int, there: int, parent: int) -> int:
    if here != parent:
        os.close(here)
    return there


def _enter(directory: int, name: str, path: str) -> int:
    """The directory, open; -1 if it is gone."""
    try:
        return syscalls.openat2(directory, name, _DIRECTORY, _WITHIN)
    except FileNotFoundError:
        return -1
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise OSError(errno.EBUSY, "something is mounted there", path) from None
        raise OSError(error.errno, error.strerror, path) from None


def _unlink_files(directory: int, path: str) -> list[str]:
    """Unlink all that is no directory; the names of those that are."""
    directories = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
                continue
            try:
                os.unlink(entry.name, dir_fd=directory)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise OSError(error.errno, error.strerror, f"{path}/{entry.name}") from None
    return directories


def _check_same(above: int, name: str, directory: int) -> None:
    """Somebody may have moved it away in the meantime; then what is above it now is none of ours."""
    if not os.path.samestat(os.stat(name, dir_fd=above, follow_symlinks=False), os.fstat(directory)):
        raise OSError(errno.EBUSY, "it was moved while it was being removed", name)
