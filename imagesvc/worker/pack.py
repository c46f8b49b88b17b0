"""Turning a directory into a layer: a container's writable overlay directory, or a plain root file system.

overlayfs' marks become OCI's: a character device 0/0 is `.wh.NAME`, trusted.overlay.opaque is `.wh..wh..opq`. Entries are
sorted by name, each directory before what is in it, so the same directory always gives the same tar. The root itself is left
out: its times change with every file, and its owner is that of the layers below.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

from isal import isal_zlib

from imagesvc.limits import MIB
from imagesvc.tar import tar_stream, tar_writer
from imagesvc.tar.tar_stream import Entry
from imagesvc.worker.merged_view import is_opaque, is_whiteout

_READ = 1 * MIB
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LEVEL = 3
_GZIP_WINDOW = 31
_OVERLAY = b"trusted.overlay."
_ORIGIN = b"trusted.overlay.origin"
"""What a directory has that was copied from a lower layer; one that was made has it not."""
_UNPACKABLE = (b"trusted.overlay.redirect", b"trusted.overlay.metacopy")
_TYPES = {
    stat.S_IFREG: tar_stream.REGULAR,
    stat.S_IFDIR: tar_stream.DIRECTORY,
    stat.S_IFLNK: tar_stream.SYMLINK,
    stat.S_IFCHR: tar_stream.CHAR,
    stat.S_IFBLK: tar_stream.BLOCK_DEVICE,
    stat.S_IFIFO: tar_stream.FIFO,
}


class GzipBlob:
    """A compressed layer being written to a file; knows its digest and diff id at the end."""

    def __init__(self, path: str) -> None:
        self._out: BinaryIO = open(path, "wb")  # noqa: SIM115  closed by `finish`
        self._compressor = isal_zlib.compressobj(_LEVEL, wbits=_GZIP_WINDOW)
        self._blob = hashlib.sha256()
        self._tar = hashlib.sha256()
        self._size = 0
        self.inflated = 0

    def write(self, data: bytes) -> None:
        """Takes in bytes of the tar."""
        self._tar.update(data)
        self.inflated += len(data)
        self._emit(self._compressor.compress(data))

    def _emit(self, data: bytes) -> None:
        if data:
            self._blob.update(data)
            self._size += len(data)
            self._out.write(data)

    def finish(self) -> dict[str, str | int]:
        """Ends the file and says what it is."""
        self._emit(self._compressor.flush())
        self._out.close()
        return {
            "digest": "sha256:" + self._blob.hexdigest(),
            "diff_id": "sha256:" + self._tar.hexdigest(),
            "size": self._size,
        }


class Sink(Protocol):
    """Where an archive goes."""

    def write(self, data: bytes, /) -> object:
        """Takes in the next bytes."""
        ...


def pack(root: bytes, sink: Sink, excluded: frozenset[bytes], newest: int | None) -> None:
    """Writes a directory as a layer.

    `excluded` are paths below the root that are left out with all that is in them; times after `newest` (nanoseconds since
    the epoch) become it. Raises ValueError for overlay directories that only their own lower layers explain.
    """
    seen: dict[tuple[int, int], bytes] = {}
    for name, path, status in _walk(root, excluded):
        if is_whiteout(status):
            parent, slash, base = name.rpartition(b"/")
            sink.write(tar_writer.header(_marker(parent + slash + b".wh." + base)))
            continue
        if stat.S_ISSOCK(status.st_mode):
            continue
        entry = _entry(name, path, status, newest)
        inode = (status.st_dev, status.st_ino)
        if entry.type == tar_stream.REGULAR and status.st_nlink > 1:
            first = seen.setdefault(inode, name)
            if first != name:
                entry.type, entry.link, entry.size, entry.xattrs = tar_stream.LINK, first, 0, {}
        sink.write(tar_writer.header(entry))
        if entry.type == tar_stream.REGULAR:
            _content(path, entry.size, sink.write)
        elif entry.type == tar_stream.DIRECTORY and is_opaque(path):
            sink.write(tar_writer.header(_marker(name + b"/.wh..wh..opq")))
    sink.write(tar_writer.END)


def made_for(upper: bytes, excluded: frozenset[bytes]) -> frozenset[bytes]:
    """Directories of an overlay's upper one in which nothing but excluded paths is, and of which no lower layer has any:
    such as /run/secrets in an image without it, in which a secret was mounted."""
    found: set[bytes] = set()
    for path in excluded:
        while path := path.rpartition(b"/")[0]:
            inside = os.path.join(upper, path)
            if os.path.islink(inside) or not os.path.isdir(inside) or _ORIGIN in map(os.fsencode, os.listxattr(inside)):
                break
            if {os.path.join(path, os.fsencode(name)) for name in os.listdir(inside)} - excluded - found:
                break
            found.add(path)
    return frozenset(found)


class _Level(NamedTuple):
    """A directory on the way: its name with a slash, what is left of it (last first), and which one it is."""

    name: bytes
    names: list[bytes]
    inode: tuple[int, int]


def _walk(root: bytes, excluded: frozenset[bytes]) -> Iterator[tuple[bytes, bytes, os.stat_result]]:
    """Everything below the root in the order of names, however deep: name, a short path that is good for this step, lstat.

    One directory is open at a time; the way back up is `..`, checked.
    """
    fd = os.open(root, _DIRECTORY)
    try:
        levels = [_level(fd, b"")]
        while levels:
            level = levels[-1]
            if not level.names:
                levels.pop()
                if levels:
                    fd = _instead(fd, os.open("..", _DIRECTORY, dir_fd=fd))
                    if _identity(os.fstat(fd)) != levels[-1].inode:
                        raise ValueError("its directories are moved while it is packed: try again, or pause the container")
                continue
            base = level.names.pop()
            name = level.name + base
            if name in excluded:
                continue
            path = b"/proc/self/fd/%d/%s" % (fd, base)
            try:
                status = os.lstat(path)
                yield name, path, status
                if stat.S_ISDIR(status.st_mode):
                    fd = _instead(fd, os.open(base, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd))
                    levels.append(_level(fd, name + b"/"))
            except (FileNotFoundError, NotADirectoryError):
                continue  # a container that still runs has just removed it
    finally:
        os.close(fd)


def _level(fd: int, name: bytes) -> _Level:
    names = sorted((os.fsencode(base) for base in os.listdir(fd)), reverse=True)
    return _Level(name, names, _identity(os.fstat(fd)))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _instead(old: int, new: int) -> int:
    os.close(old)
    return new


def _entry(name: bytes, path: bytes, status: os.stat_result, newest: int | None) -> Entry:
    entry = Entry()
    entry.type = _TYPES[stat.S_IFMT(status.st_mode)]
    entry.name = name + b"/" if entry.type == tar_stream.DIRECTORY else name
    entry.mode = stat.S_IMODE(status.st_mode)
    entry.uid, entry.gid = status.st_uid, status.st_gid
    entry.mtime = status.st_mtime_ns if newest is None else min(status.st_mtime_ns, newest)
    if entry.type == tar_stream.REGULAR:
        entry.size = entry.stored = status.st_size
    elif entry.type == tar_stream.SYMLINK:
        entry.link = os.readlink(path)
    elif entry.type in (tar_stream.CHAR, tar_stream.BLOCK_DEVICE):
        entry.major, entry.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
    entry.xattrs = _xattrs(path)
    return entry


def _xattrs(path: bytes) -> dict[bytes, bytes]:
    found = {}
    try:
        names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        names = []
    for name in names:
        if name in _UNPACKABLE:
            raise ValueError(f"{os.fsdecode(path)} has {name.decode()}: this overlay cannot be committed")
        if not name.startswith(_OVERLAY) and name != b"security.selinux":
            found[name] = os.getxattr(path, name, follow_symlinks=False)
    return found


def _marker(name: bytes) -> Entry:
    entry = Entry()
    entry.name, entry.mode = name, 0o600
    return entry


def _content(path: bytes, size: int, write: Callable[[bytes], object]) -> None:
    """Exactly `size` bytes, even of a file that changes meanwhile: the header has said how many there are."""
    left = size
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(path, "rb", opener=lambda name, _flags: os.open(name, flags)) as stream:
        while left and (chunk := stream.read(min(left, _READ))):
            write(chunk)
            left -= len(chunk)
    while left:
        filler = bytes(min(left, _READ))
        write(filler)
        left -= len(filler)
    write(tar_writer.padding(size))
