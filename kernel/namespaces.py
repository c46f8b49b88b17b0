"""Namespaces: pinned as files, joined, and user namespaces with their mappings.

A pinned namespace is a bind mount of /proc/PID/ns/KIND on an empty file; it lives until `unpin`, whether or not a
process is in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from kernel import modes, mounts, syscalls

FLAGS: dict[str, int] = {
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "user": syscalls.CLONE_NEWUSER,
    "pid": syscalls.CLONE_NEWPID,
    "mnt": syscalls.CLONE_NEWNS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}


class IdMap(NamedTuple):
    """`size` ids from `inside` on are `outside` and following in the parent namespace."""

    inside: int
    outside: int
    size: int


def unshare(kinds: Sequence[str]) -> None:
    """Move this thread into new namespaces of `kinds`; with "pid", its children. "user" is for a process of one thread."""
    flags = 0
    for kind in kinds:
        flags |= FLAGS[kind]
    syscalls.unshare(flags)


def join(path: str, kind: str) -> None:
    """Move this thread into the namespace pinned at `path`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(fd, FLAGS[kind])
    finally:
        os.close(fd)


def pin(path: str, kind: str, pid: int | str = "self") -> None:
    """Pin a namespace of `pid` ("thread-self" is this thread) at `path`, which is created; for "pid" it is the namespace of
    its next children."""
    link = "pid_for_children" if kind == "pid" and pid == "self" else kind
    _pin(f"/proc/{pid}/ns/{link}", path)


def pin_open(path: str, fd: int) -> None:
    """Pin the namespace that `fd` refers to at `path`, which is created."""
    _pin(f"/proc/self/fd/{fd}", path)


def _pin(namespace: str, path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        syscalls.mount(namespace, path, flags=syscalls.MS_BIND)
    except OSError:
        os.unlink(path)
        raise


def unpin(path: str) -> None:
    """Let go of the namespace pinned at `path` and remove the file; nothing happens if it is not there."""
    while mounts.detach(path):
        continue
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def publish(pinned: str, place: str) -> None:
    """Pin a pinned namespace at a second place too, over whatever is there, in a directory whose mounts reach those who have
    mounted that directory: as iproute2 and other container runtimes do it for /var/run/netns."""
    directory = os.path.realpath(os.path.dirname(place))
    if not os.path.isdir(directory):
        modes.own(directory, 0o755)  # whatever this process's umask
    _share(directory)
    unpin(place)
    os.close(os.open(place, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        mounts.bind(pinned, place)
    except OSError:
        os.unlink(place)
        raise


LOCK_SECONDS: Final = 2.0
"""How long the lock of a directory is waited for. Everybody who can read the directory can hold it, and for ever."""


def _share(directory: str) -> None:
    """Make it a shared mount of its own, unless it is one."""
    if _is_shared(directory):
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd)  # nobody else may put a second mount over the first
        if not _is_shared(directory):
            mounts.bind(directory, directory, recursive=True)
            syscalls.mount("none", directory, flags=syscalls.MS_SHARED | syscalls.MS_REC)
    finally:
        os.close(fd)


def _is_shared(directory: str) -> bool:
    """Whether it is a mount, which becomes a shared one."""
    try:
        syscalls.mount("none", directory, flags=syscalls.MS_SHARED | syscalls.MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _lock(fd: int) -> None:
    """With iproute2 and others who do the same; without them if that takes too long, as iproute2 goes on too."""
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return


def is_pinned(path: str) -> bool:
    """Whether `path` is a namespace, and not an empty file that a crash has left."""
    try:
        # Namespaces are the only files of their file system (nsfs), so its device number tells.
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


def write_mappings(pid: int, uids: Sequence[IdMap], gids: Sequence[IdMap]) -> None:
    """Write the id mappings of the fresh user namespace of `pid`; only its parent namespace can, and only once."""
    for name, entries in (("uid_map", uids), ("gid_map", gids)):
        text = "".join(f"{entry.inside} {entry.outside} {entry.size}\n" for entry in entries)
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            # The kernel takes the mapping in one write or not at all.
            os.write(fd, text.encode())
        except OSError as error:
            raise OSError(error.errno or errno.EINVAL, f"{name} {text.strip()!r}: {error.strerror}") from error
        finally:
            os.close(fd)


@contextmanager
def inside(path: str, kind: str) -> Iterator[None]:
    """Run the body with this thread in the namespace at `path`: net, ipc or uts, in a thread that nothing else uses."""
    before = os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        join(path, kind)
        try:
            yield
        finally:
            syscalls.setns(before, FLAGS[kind])
    finally:
        os.close(before)
