"""A layer unpacked into a directory, which is the root of the process: whatever a name says, it stays inside."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from imagesvc.tar import tar_stream
from imagesvc.tar.header import TarError
from imagesvc.tar.skeleton import SkeletonWriter
from imagesvc.tar.tar_stream import Entry
from imagesvc.worker.copy_up import OVERLAY_XATTRS, copy_object, inherit_xattrs
from imagesvc.worker.entry_names import shown
from imagesvc.worker.layer_target import DEFAULT_DIRECTORY_MODE, mtime_of
from imagesvc.worker.merged_view import OPAQUE_XATTR, Found
from kernel import removal
from kernel.descriptors import write_all

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL_BITS = 0o7000


class LayerDirectory:
    """See layer_target.Target."""

    def __init__(self, skeleton: SkeletonWriter) -> None:
        self._skeleton = skeleton
        self._inherits_group = False
        """Whether a directory has the set-group-id bit: what is made in it gets its group."""
        self._file = -1
        self._segments: list[tuple[int, int]] | None = None
        self._entry: Entry | None = None
        self.lstat = os.lstat
        self.readlink = os.readlink
        self.unlink = os.unlink
        self.remove_tree = removal.remove_tree

    def regular(self, entry: Entry, path: bytes) -> None:
        """Makes a file."""
        mode = entry.mode
        descriptor = os.open(path, _CREATE, mode)
        self._file = descriptor
        self._entry = entry
        if entry.uid or entry.gid or self._inherits_group or mode & _SPECIAL_BITS:
            # chown clears the set-id bits, even for root.
            os.fchown(descriptor, entry.uid, entry.gid)
            os.fchmod(descriptor, mode)
        if entry.stored or entry.segments is not None:
            self._skeleton.file(entry, path)
            if entry.segments is not None:
                self._segments = list(reversed(entry.segments))
                os.ftruncate(descriptor, entry.size)
        if not entry.stored:
            self._finish_file()

    def data(self, view: memoryview, last: bool) -> None:
        """Writes a piece of it."""
        if self._segments is None:
            write_all(self._file, view)
        else:
            self._write_segments(view)
        if last:
            self._finish_file()

    def _write_segments(self, view: memoryview) -> None:
        assert self._segments is not None
        while view:
            offset, length = self._segments.pop()
            if not length:
                continue
            written = os.pwrite(self._file, view[:length], offset)
            view = view[written:]
            if written < length:
                self._segments.append((offset + written, length - written))

    def _finish_file(self) -> None:
        entry = self._entry
        assert entry is not None
        try:
            if entry.xattrs:
                set_xattrs(entry, self._file)
            mtime = mtime_of(entry)
            os.utime(self._file, ns=(mtime, mtime))
        finally:
            os.close(self._file)
            self._file = -1
            self._entry = None
            self._segments = None

    def mkdir(self, path: bytes, mode: int) -> None:
        """Makes a directory."""
        os.mkdir(path, mode)

    def make_default(self, path: bytes) -> None:
        """Makes a directory; a set-group-id parent must not show in it."""
        os.mkdir(path)
        os.lchown(path, 0, 0)
        os.chmod(path, DEFAULT_DIRECTORY_MODE)

    def set_directory(self, entry: Entry, path: bytes) -> None:
        """Sets all but the time."""
        target = path or b"."
        os.lchown(target, entry.uid, entry.gid)
        os.chmod(target, entry.mode)
        if entry.mode & stat.S_ISGID:
            self._inherits_group = True
        if entry.xattrs:
            set_xattrs(entry, target)

    def symlink(self, entry: Entry, path: bytes) -> None:
        """Makes a symbolic link."""
        os.symlink(entry.link, path)
        self._set_other(entry, path)

    def device(self, entry: Entry, path: bytes) -> None:
        """Makes a device or FIFO."""
        if entry.type == tar_stream.FIFO:
            os.mkfifo(path, entry.mode)
        else:
            kind = stat.S_IFCHR if entry.type == tar_stream.CHAR else stat.S_IFBLK
            os.mknod(path, kind | entry.mode, os.makedev(entry.major, entry.minor))
        self._set_other(entry, path)

    def _set_other(self, entry: Entry, path: bytes) -> None:
        """Owner, mode and times of what is neither a file nor a directory."""
        if entry.uid or entry.gid or self._inherits_group:
            os.lchown(path, entry.uid, entry.gid)
        if entry.type != tar_stream.SYMLINK and entry.mode & _SPECIAL_BITS:
            os.chmod(path, entry.mode)
        if entry.xattrs:
            set_xattrs(entry, path)
        mtime = mtime_of(entry)
        os.utime(path, ns=(mtime, mtime), follow_symlinks=False)

    def link(self, target: bytes, path: bytes) -> None:
        """Makes a hard link."""
        os.link(target, path, follow_symlinks=False)

    def whiteout(self, path: bytes) -> None:
        """Makes overlayfs' mark."""
        os.mknod(path, stat.S_IFCHR, 0)

    def make_opaque(self, path: bytes) -> None:
        """Makes overlayfs' mark."""
        os.setxattr(path or b".", OPAQUE_XATTR, b"y")

    def copy_up(self, found: Found, path: bytes) -> None:
        """Copies it."""
        copy_object(found, path)
        if found.is_directory and found.status.st_mode & stat.S_ISGID:
            self._inherits_group = True

    def inherit_xattrs(self, found: Found, path: bytes) -> bool:
        """Copies what the directory lacks."""
        return inherit_xattrs(found, path)

    def finish(self, times: Mapping[bytes, int]) -> None:
        """Sets directories' times, which every file made in them has changed."""
        for path, mtime in times.items():
            os.utime(path or b".", ns=(mtime, mtime), follow_symlinks=False)


def set_xattrs(entry: Entry, target: bytes | int) -> None:
    """Sets an entry's attributes on what was made of it, but for those that are overlayfs' own."""
    for name, value in entry.xattrs.items():
        if name.startswith(OVERLAY_XATTRS):
            # They steer overlayfs (redirect, metacopy): a layer that could set them could show any file of the disk.
            continue
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            # As containerd and tar do: a file system or a kernel without these attributes still runs the image.
            ignorable = error.errno == errno.EOPNOTSUPP or (error.errno == errno.EPERM and name.startswith(b"user."))
            if not ignorable and not (error.errno in (errno.ENOSPC, errno.EDQUOT) and _disk_is_full()):
                # ext4 says ENOSPC where an inode has no room for more, however empty the disk is.
                raise xattr_error(entry.name, name, error) from None
            if not ignorable:
                raise


def xattr_error(path: bytes, name: bytes, error: OSError) -> TarError:
    """For who reads it: an attribute that cannot be."""
    why = "the file system has no room for it" if error.errno == errno.ENOSPC else error.strerror
    return TarError(f"{shown(path)}: its attribute {shown(name)} cannot be set: {why}")


def _disk_is_full() -> bool:
    disk = os.statvfs(".")
    return disk.f_bavail < 64 or (disk.f_files > 0 and disk.f_favail < 1)
