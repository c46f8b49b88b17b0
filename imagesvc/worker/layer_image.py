"""A layer unpacked into an EROFS image (imagesvc/erofs), of which this process has a descriptor and else nothing.

Directories are kept in memory until the end, with the names in them; of files there is nothing but their nodes.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from imagesvc.erofs import format as ondisk
from imagesvc.erofs import xattrs
from imagesvc.erofs.image import Attributes, Directory, ImageWriter, kind_of
from imagesvc.limits import MIB
from imagesvc.tar import tar_stream
from imagesvc.tar.skeleton import SkeletonWriter
from imagesvc.tar.tar_stream import Entry
from imagesvc.worker.copy_up import HOST_LABEL, OVERLAY_XATTRS, kept_xattrs
from imagesvc.worker.direct_file import DirectFile
from imagesvc.worker.layer_directory import xattr_error
from imagesvc.worker.layer_target import DEFAULT_DIRECTORY_MODE, mtime_of
from imagesvc.worker.merged_view import OPAQUE_XATTR, Found

_PATH_MAX = 4095
_LINK_MAX = 4095
_COPY = 1 * MIB
_CACHED = 65536
"""Paths of directories that are remembered."""
_KINDS = {tar_stream.CHAR: ondisk.CHR, tar_stream.BLOCK_DEVICE: ondisk.BLK, tar_stream.FIFO: ondisk.FIFO}
_OPAQUE = OPAQUE_XATTR.encode()


class _Status(NamedTuple):
    st_mode: int
    st_rdev: int
    st_size: int
    st_ino: int


class LayerImage:
    """See layer_target.Target. What has been made so far is written by `drain`, which has to be called now and then."""

    def __init__(self, path: str, descriptor: int, skeleton: SkeletonWriter) -> None:
        """`descriptor` is that of the file at `path`."""
        self._descriptor = descriptor
        self._out = DirectFile(path, descriptor)
        self._skeleton = skeleton
        self._writer = ImageWriter(uuid=os.urandom(16))
        self._now = time.time_ns()
        self.root = Directory(None, b"")
        self.root.mtime = self._now
        self._directories: dict[bytes, Directory] = {b"": self.root}
        self._targets: dict[int, bytes] = {}
        self._whiteouts: set[int] = set()
        self._segments: list[tuple[int, int]] | None = None
        self._address = 0
        self.disk_bytes = 0
        """Of what has been written; holes are not counted."""

    @property
    def size(self) -> int:
        """Bytes of the image, once `finish` has been called."""
        return self._writer.size

    @property
    def metadata(self) -> list[tuple[int, int]]:
        """Where it has metadata, once `finish` has been called."""
        return self._writer.metadata

    def close(self) -> None:
        """Nothing more is written. A job that ends without it loses nothing."""
        self._out.close()

    def drain(self) -> None:
        """Writes what is there. Raises OSError."""
        for address, buffers in self._writer.take():
            self.disk_bytes += self._out.write(address, buffers)

    def lstat(self, path: bytes) -> _Status:
        """What is there."""
        parent, _, base = path.rpartition(b"/")
        node = self._directory(parent).children.get(base) if base else self.root
        if node is None:
            number = errno.ENOENT if len(base) <= ondisk.NAME_MAX and len(path) <= _PATH_MAX else errno.ENAMETOOLONG
            raise OSError(number, os.strerror(number), path)
        if isinstance(node, Directory):
            return _Status(stat.S_IFDIR, 0, 0, id(node))
        kind = kind_of(node)
        return _Status(ondisk.MODES[kind], kind == ondisk.CHR and node not in self._whiteouts, 0, node)

    def readlink(self, path: bytes) -> bytes:
        """Where it points."""
        return self._targets[self._node(path)]

    def _directory(self, path: bytes) -> Directory:
        found = self._directories.get(path)
        if found is None:
            found = self.root
            for part in path.split(b"/"):
                child = found.children.get(part)
                if child is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                if not isinstance(child, Directory):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                found = child
            if len(self._directories) > _CACHED:
                self._directories = {b"": self.root}
            self._directories[path] = found
        return found

    def _node(self, path: bytes) -> int:
        parent, _, base = path.rpartition(b"/")
        node = self._directory(parent).children[base]
        assert type(node) is int
        return node

    def free(self, path: bytes) -> tuple[Directory, bytes]:
        """Where a new name is to go."""
        name, _, base = path.rpartition(b"/")
        parent = self._directories.get(name) or self._directory(name)
        if len(base) > ondisk.NAME_MAX or len(path) > _PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        if base in parent.children:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        return parent, base

    def regular(self, entry: Entry, path: bytes) -> None:
        """Makes a file's inode."""
        parent, base = self.free(path)
        parent.children[base] = self.file_without_name(entry)

    def file_without_name(self, entry: Entry) -> int:
        """An inode for a file, whose content follows through `data`, if it has any."""
        attributes = _attributes(entry, stat.S_IFREG | entry.mode)
        if entry.segments is None:
            self._segments = None
            node = self._writer.file(attributes, entry.size)
            if entry.stored:
                self._skeleton.pieces(node, self._writer.content)
            return node
        node, self._address = self._writer.sparse_file(attributes, entry.size)
        self._segments = [segment for segment in reversed(entry.segments) if segment[1]]
        self._skeleton.pieces(node, [n for offset, length in entry.segments for n in (self._address + offset, length)])
        return node

    def data(self, view: memoryview, last: bool) -> None:
        """Takes in a piece of its content."""
        if self._segments is None:
            self._writer.data(view)
            return
        while view:
            offset, length = self._segments.pop()
            self._writer.put(self._address + offset, view[:length])
            if len(view) < length:
                self._segments.append((offset + len(view), length - len(view)))
            view = view[length:]

    def mkdir(self, path: bytes, mode: int) -> None:
        """Makes a directory."""
        parent, base = self.free(path)
        directory = Directory(parent, base)
        directory.mode = mode
        directory.mtime = self._now
        parent.children[base] = directory
        self._directories[path] = directory

    def make_default(self, path: bytes) -> None:
        """Makes a directory."""
        self.mkdir(path, DEFAULT_DIRECTORY_MODE)

    def set_directory(self, entry: Entry, path: bytes) -> None:
        """Sets all but the time."""
        directory = self._directory(path)
        directory.uid, directory.gid = entry.uid, entry.gid
        mode, kept = _accept(entry.name, stat.S_IFDIR | entry.mode, entry.xattrs)
        directory.mode = stat.S_IMODE(mode)
        if kept:
            directory.xattrs = {**directory.xattrs, **kept}

    def symlink(self, entry: Entry, path: bytes) -> None:
        """Makes a symbolic link."""
        self._symlink(entry.link, _attributes(entry, stat.S_IFLNK | 0o777), path)

    def _symlink(self, target: bytes, attributes: Attributes, path: bytes) -> None:
        if b"\0" in target:
            raise ValueError("a symbolic link leads to a name with a NUL")
        if not target or len(target) > _LINK_MAX:
            number = errno.ENAMETOOLONG if target else errno.ENOENT
            raise OSError(number, os.strerror(number), path)
        parent, base = self.free(path)
        node = self._writer.symlink(attributes, target)
        parent.children[base] = node
        self._targets[node] = target

    def device(self, entry: Entry, path: bytes) -> None:
        """Makes a device or FIFO."""
        kind = _KINDS[entry.type]
        attributes = _attributes(entry, ondisk.MODES[kind] | entry.mode)
        self._device(kind, attributes, ondisk.device_number(entry.major, entry.minor), path)

    def _device(self, kind: int, attributes: Attributes, number: int, path: bytes) -> None:
        parent, base = self.free(path)
        node = self._writer.device(kind, attributes, number)
        parent.children[base] = node
        if kind == ondisk.CHR and not number:
            self._whiteouts.add(node)

    def link(self, target: bytes, path: bytes) -> None:
        """Makes a hard link."""
        parent, base = self.free(path)
        node = self._node(target)
        self._writer.link(node)
        parent.children[base] = node

    def whiteout(self, path: bytes) -> None:
        """Makes overlayfs' mark."""
        self._device(ondisk.CHR, Attributes(stat.S_IFCHR, 0, 0, self._now), 0, path)

    def make_opaque(self, path: bytes) -> None:
        """Makes overlayfs' mark."""
        directory = self._directory(path)
        directory.xattrs = {**directory.xattrs, _OPAQUE: b"y"}

    def unlink(self, path: bytes) -> None:
        """Removes a name."""
        parent, _, base = path.rpartition(b"/")
        node = self._directory(parent).children.pop(base)
        assert type(node) is int
        self._writer.unlink(node)

    def remove_tree(self, path: bytes) -> None:
        """Removes all names below one."""
        parent, _, base = path.rpartition(b"/")
        removed = self._directory(parent).children.pop(base, None)
        todo = [removed] if removed is not None else []
        while todo:
            node = todo.pop()
            if isinstance(node, Directory):
                todo += node.children.values()
            else:
                self._writer.unlink(node)
        self._directories = {b"": self.root}

    def copy_up(self, found: Found, path: bytes) -> None:
        """Copies it."""
        status = found.status
        kept = dict(kept_xattrs(found))
        if found.is_directory:
            self.mkdir(path, stat.S_IMODE(status.st_mode))
            directory = self._directory(path)
            directory.uid, directory.gid, directory.mtime = status.st_uid, status.st_gid, status.st_mtime_ns
            _mode, directory.xattrs = xattrs.accept(status.st_mode, kept)
            return
        mode, kept = xattrs.accept(status.st_mode, kept)
        attributes = Attributes(mode, status.st_uid, status.st_gid, status.st_mtime_ns, xattrs.encode(kept))
        if found.is_symlink:
            self._symlink(found.link_target(), attributes, path)
        elif stat.S_ISREG(mode):
            parent, base = self.free(path)
            parent.children[base] = self._writer.file(attributes, status.st_size)
            self._copy_content(found)
        else:
            kind = next(kind for kind, bits in ondisk.MODES.items() if bits == stat.S_IFMT(mode))
            number = ondisk.device_number(os.major(status.st_rdev), os.minor(status.st_rdev))
            self._device(kind, attributes, number, path)

    def _copy_content(self, found: Found) -> None:
        reader = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found.layer)
        try:
            left = found.status.st_size
            while left:
                chunk = os.read(reader, min(_COPY, left))
                if not chunk:
                    raise OSError(errno.EIO, "a file of a lower layer is shorter than it was", found.path)
                self._writer.data(chunk)
                self.drain()
                left -= len(chunk)
        finally:
            os.close(reader)

    def inherit_xattrs(self, found: Found, path: bytes) -> bool:
        """Copies what the directory lacks."""
        directory = self._directory(path)
        kept = {name: value for name, value in kept_xattrs(found) if name != HOST_LABEL}
        if kept:
            mode, accepted = xattrs.accept(stat.S_IFDIR | directory.mode, {**kept, **directory.xattrs})
            directory.mode = stat.S_IMODE(mode)
            directory.xattrs = accepted
        return bool(kept)

    def finish_without_tree(self) -> None:
        """Writes what there is, with an empty root: the names are still to come."""
        self.root = Directory(None, b"")
        self._writer.forget_names()
        self._writer.finish(self.root)
        self.drain()
        self._out.flush()

    def resume(self, size: int, metadata: Sequence[tuple[int, int]]) -> None:
        """Goes on with an image of which there is everything but the tree. Raises OSError."""
        self._writer.resume(size, metadata, os.pread(self._descriptor, ondisk.SUPERBLOCK.size, ondisk.SUPER_OFFSET))

    def finish(self, times: Mapping[bytes, int]) -> None:
        """Writes the directories."""
        for path, mtime in times.items():
            self._directory(path).mtime = mtime
        self._writer.finish(self.root)
        self.drain()
        self._out.flush()


def _attributes(entry: Entry, mode: int) -> Attributes:
    if not entry.xattrs:
        return Attributes(mode, entry.uid, entry.gid, mtime_of(entry))
    mode, kept = _accept(entry.name, mode, entry.xattrs)
    return Attributes(mode, entry.uid, entry.gid, mtime_of(entry), xattrs.encode(kept))


def _accept(path: bytes, mode: int, given: Mapping[bytes, bytes]) -> tuple[int, dict[bytes, bytes]]:
    """The mode and attributes that an entry's file has; not those that steer overlayfs."""
    if not given:
        return mode, {}
    try:
        return xattrs.accept(mode, {name: value for name, value in given.items() if not name.startswith(OVERLAY_XATTRS)})
    except OSError as error:
        raise xattr_error(path, error.filename, error) from None
