"""Layers that are files: EROFS images, each mounted once for all containers that use it.

A mount of a file makes a super block of its own, with its own page cache. So a layer is mounted by whoever needs it first,
in a mount namespace that is there for nothing else, and each container gets a clone of that mount (open_tree(2)). The
namespace has no mount of the host's but the directory of the layers: it keeps no mount of the host's busy, nobody inherits
its mounts, and `df` shows none of them. It outlives daemons; where it is not there, after a reboot say, the next who needs
it makes it anew.

<place>/              a private mount, for a mount namespace can be pinned on no other
    lock              held by whoever makes the namespace, mounts or unmounts
    namespace         the namespace, pinned
    root/             where it is put together
in the namespace:
    /files            the directory of the layers
    /<number>         the mount of the file that has this inode number: a file that is mounted is there, so its number is
                      no other's, whatever is renamed or comes in its place

Whoever calls this has one thread: setns(2) takes no other into a mount namespace.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from kernel import modes, mounts, namespaces, syscalls

_LOCK, _NAMESPACE, _ROOT = "lock", "namespace", "root"
_FILES = "files"


def is_file(layer: str) -> bool:
    """Whether a lower directory's place is such a file. A directory that somebody has made an image may have any name."""
    return layer.endswith(".erofs") and os.path.isfile(layer)


def open_layer(layer: str) -> int:
    """A descriptor of a layer's root directory: a directory's own, or that of a mount of its file which nobody else has and
    which goes with the descriptor."""
    if not is_file(layer):
        return os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    mount = mounts.erofs(layer)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)


def clones(place: str, layers: Iterable[str]) -> dict[str, int]:
    """A detached mount of each of the layers that are files, by its path. The files lie in one directory."""
    files = sorted({layer for layer in layers if is_file(layer)})
    if not files:
        return {}
    found: dict[str, int] = {}
    with _inside(place, os.path.dirname(files[0])):
        for path in files:
            found[path] = _clone(os.path.basename(path))
    return found


def _clone(name: str) -> int:
    source = f"/{_FILES}/{name}"
    target = f"/{os.stat(source).st_ino}"
    try:
        os.mkdir(target, 0o700)
    except FileExistsError:
        mounted = os.stat(target).st_dev != os.stat("/").st_dev
    else:
        mounted = False
    if not mounted:
        mount = mounts.erofs(source)
        try:
            syscalls.move_mount(mount, target)
        finally:
            os.close(mount)
    return syscalls.open_tree(target, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)


def attach(base: str, detached: dict[str, int]) -> dict[str, str]:
    """Mounts clones below `base`, in the present mount namespace; the directory of each by its layer's path. `base` lies on
    a private mount and becomes a mount itself, so that one unmount takes all of them away: each waits for all processors.
    """
    places = {}
    os.makedirs(base, mode=0o711, exist_ok=True)
    mounts.bind(base, base)
    for number, (layer, mount) in enumerate(detached.items()):
        directory = os.path.join(base, str(number))
        os.makedirs(directory, mode=0o711, exist_ok=True)
        syscalls.move_mount(mount, directory)
        os.close(mount)
        places[layer] = directory
    return places


def unmount(place: str, layers: Sequence[str]) -> None:
    """Unmounts layers, if they are mounted; containers that have clones keep them."""
    files = [layer for layer in layers if is_file(layer)]
    if place and files and namespaces.is_pinned(os.path.join(place, _NAMESPACE)):
        with _inside(place, os.path.dirname(files[0])):
            for path in files:
                with suppress(FileNotFoundError):  # somebody has removed it meanwhile
                    _unmount(os.stat(f"/{_FILES}/{os.path.basename(path)}").st_ino)


def _unmount(number: int) -> None:
    if mounts.detach(f"/{number}"):
        os.rmdir(f"/{number}")


def reconcile(place: str, directory: str) -> int:
    """What a daemon that was killed has left: unmounts what is no file of `directory`; how many mounts went."""
    if not namespaces.is_pinned(os.path.join(place, _NAMESPACE)):
        return 0
    gone = 0
    with _inside(place, directory):
        there = {entry.inode() for entry in os.scandir(f"/{_FILES}")}
        for name in os.listdir("/"):
            if name.isdecimal() and int(name) not in there:
                _unmount(int(name))
                gone += 1
    return gone


@contextmanager
def _inside(place: str, directory: str) -> Iterator[None]:
    """In the namespace, which is made if need be, with the lock; then back, in the same working directory."""
    modes.own(place, 0o700)
    lock = os.open(os.path.join(place, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    home = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pinned = os.path.join(place, _NAMESPACE)
        wanted = os.stat(directory)
        try:
            if not _join(pinned, wanted):
                syscalls.setns(before, syscalls.CLONE_NEWNS)
                namespaces.unpin(pinned)
                _make(place, directory, before)
                namespaces.join(pinned, "mnt")
            yield
        finally:
            syscalls.setns(before, syscalls.CLONE_NEWNS)
            os.fchdir(home)
    finally:
        for descriptor in (lock, before, home):
            os.close(descriptor)


def _join(pinned: str, wanted: os.stat_result) -> bool:
    """Goes there; whether what is pinned is a namespace for the directory `wanted`, and not another, or none."""
    if not namespaces.is_pinned(pinned):
        return False
    try:
        namespaces.join(pinned, "mnt")
        return os.path.samestat(wanted, os.stat(f"/{_FILES}"))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        return False


def _make(place: str, directory: str, before: int) -> None:
    """Puts the namespace together, and pins it.

    The kernel lets a mount namespace be pinned in an older one alone, by their numbers, and hands these out in batches for
    each processor (Linux 6.18): one that is made on another processor than the present one can seem to be older, and is
    refused. On the processor of the present one, it is not; nobody tells which that was.
    """
    mounts.ensure_private_mount(place)
    root, pinned = os.path.join(place, _ROOT), os.path.join(place, _NAMESPACE)
    os.makedirs(root, mode=0o700, exist_ok=True)
    namespaces.unpin(pinned)  # an empty file, if whoever came before was killed
    processors = os.sched_getaffinity(0)
    try:
        for left in (None, *sorted(processors, reverse=True)):
            if left is not None:
                os.sched_setaffinity(0, {left})
            made = _put_together(root, directory, before)
            try:
                namespaces.pin_open(pinned, made)
            except OSError as error:
                if error.errno != errno.EINVAL or left == min(processors):
                    raise
            else:
                return
            finally:
                os.close(made)
    finally:
        os.sched_setaffinity(0, processors)


def _put_together(root: str, directory: str, before: int) -> int:
    """A new namespace with the layers' directory in it, open."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    made = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            mounts.make_private("/", recursive=True)
            syscalls.mount("layers", root, "tmpfs", 0, "mode=700")
            os.mkdir(os.path.join(root, _FILES))
            mounts.bind(directory, os.path.join(root, _FILES))
            os.chdir(root)
            syscalls.pivot_root(".", ".")
            syscalls.umount2(".", syscalls.MNT_DETACH)
        finally:
            syscalls.setns(before, syscalls.CLONE_NEWNS)
    except BaseException:
        os.close(made)
        raise
    return made
