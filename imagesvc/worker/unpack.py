"""Applying one layer's tar to the layer's own directory, so that overlayfs shows what the image's author meant.

Layers are unpacked side by side, each into its own directory, before it is known what lies below. That is right only for a
layer that stands on its own; three kinds of entry depend on the layers below:

- an entry whose parent directories the tar leaves out: their mode, owner and attributes, and whether they are symbolic
  links to elsewhere, come from below;
- a hard link to a file of a lower layer: overlayfs would copy that file up;
- the same for a path that leads through a symbolic link into a directory that this layer does not have.

Of a directory that several layers name overlayfs shows the topmost one's extended attributes alone: it has to have those of
the lower ones too. They are rare; above a layer that is `attributed` nothing is unpacked alone (layer_work.py).

A `LayerWriter` without a view of the lower layers raises NeedsLower at the first of these; the caller then unpacks the
layer again once the lower ones are there, with a MergedView, and keys it by its chain id, not by its diff id (layers.py).

Whiteouts become overlayfs' own marks: `.wh.NAME` a character device 0/0, `.wh..wh..opq` the xattr trusted.overlay.opaque.
OCI layer.md: "Whiteout files MUST only apply to resources in lower/parent layers"; so a name that this layer has itself
stays, and a directory of it becomes opaque.

A whiteout must hide something: overlayfs lists one by name in a directory that it need not merge, as a file that cannot be
opened. So those that hide nothing are removed: at once where the layers below are known or the directory is opaque, else by
`whiteouts.settle` when they are there. Such a layer is keyed by its chain id too, but it is not unpacked twice.

Runs as root in a process whose root is the layer's directory: whatever a name says, it stays inside.
"""

from __future__ import annotations

import errno
import os
import stat

from imagesvc.limits import MAX_SYMLINKS, Limits
from imagesvc.tar import tar_stream
from imagesvc.tar.skeleton import SkeletonWriter
from imagesvc.tar.tar_stream import Data, Entry, TarError
from imagesvc.worker import whiteouts
from imagesvc.worker.copy_up import OVERLAY_XATTRS, copy_object, inherit_xattrs
from imagesvc.worker.entry_names import WHITEOUT_META, in_metadata, normalise, shown
from imagesvc.worker.merged_view import OPAQUE_XATTR, Found, MergedView, is_whiteout
from kernel import removal

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS_LINKS = b".wh..wh.plnk"
_PAGE = 4096
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_MTIME = 1 << 62
_DEFAULT_DIRECTORY_MODE = 0o755
_SPECIAL_BITS = 0o7000


class NeedsLower(Exception):
    """The layer depends on those below it; the message says at which path."""


class LayerWriter:
    """Applies tar events in order. Paths are relative to the process's root directory, which is the layer's.

    `lower` is None while the layers below are not known. After `finish`: `inodes`, `bytes` (of disk, in whole pages),
    `entries`, `depends` (whether it was made for the layers below), `attributed` (whether directories have extended
    attributes) and `has_root` (whether the tar had the root itself).
    """

    def __init__(self, lower: MergedView | None, skeleton: SkeletonWriter, limits: Limits) -> None:
        self._lower = lower
        self._skeleton = skeleton
        self._limits = limits
        self._parents: dict[bytes, bytes] = {b"": b""}
        self._times: dict[bytes, int] = {}
        self._opaque: set[bytes] = set()
        self.whiteouts: list[bytes] = []
        """Paths of whiteouts of which it is not known whether they hide anything."""
        self._inherits_group = False
        self._file = -1
        self._segments: list[tuple[int, int]] | None = None
        self._entry: Entry | None = None
        self.inodes = 1
        self.bytes = _PAGE
        self.entries = 0
        self.depends = lower is not None
        self.attributed = False
        self.has_root = False

    def entry(self, entry: Entry) -> None:
        """Applies a header. The content of a regular file follows through `data`."""
        self.entries += 1
        if self.entries > self._limits.layer_entries:
            raise TarError(f"the layer has more than {self._limits.layer_entries} entries")
        self._skeleton.raw(entry.raw)
        name = normalise(entry.name)
        if not name:
            self._root(entry)
            return
        raw_parent, _, base = name.rpartition(b"/")
        if base.startswith(_WHITEOUT):
            self._whiteout(raw_parent, base)
            self._swallow(entry)
            return
        parent = self._parents.get(raw_parent)
        if parent is None:
            if in_metadata(raw_parent):
                if raw_parent == _AUFS_LINKS and entry.type == tar_stream.REGULAR:
                    self._aufs_link(entry, name)
                else:
                    self._swallow(entry)
                return
            parent = self._directory(raw_parent)
        path = parent + b"/" + base if parent else base
        self._make(entry, path)

    def data(self, data: Data) -> None:
        """Writes a piece of the last regular file's content."""
        if self._file < 0:
            if self._entry is not None:
                self._skeleton.raw(bytes(data.view))
            return
        view = data.view
        if self._segments is None:
            while True:
                written = os.write(self._file, view)
                if written == len(view):
                    break
                view = view[written:]
        else:
            self._write_segments(view)
        if data.last:
            self._finish_file()

    def finish(self) -> None:
        """Removes whiteouts that hide nothing, and sets directories' times, which every file made in them has changed."""
        removal.remove_tree(_AUFS_LINKS)
        kept = [path for path in self.whiteouts if whiteouts.is_at(path)]
        self.whiteouts = [path for path in kept if not self._in_opaque(path)]
        for path in set(kept).difference(self.whiteouts):
            os.unlink(path)
        if self._lower is not None and self.whiteouts:
            whiteouts.settle(self._lower, self.whiteouts)
            self.whiteouts = []
        if self._lower is not None:
            for path in self._times:
                self._inherit_xattrs(self._lower, path)
        for path, mtime in self._times.items():
            os.utime(path or b".", ns=(mtime, mtime), follow_symlinks=False)

    def _inherit_xattrs(self, lower: MergedView, path: bytes) -> None:
        """What a directory below has and this layer's does not: nobody has said that it is to go."""
        if not path or path in self._opaque or self._in_opaque(path):
            return
        found = lower.lookup(path)
        if found is None or not found.is_directory:
            return
        self.attributed |= inherit_xattrs(found, path)

    def _aufs_link(self, entry: Entry, name: bytes) -> None:
        """A file in AUFS' own directory, which is what the hard links of the layer lead to. It goes at the end."""
        if not os.path.isdir(_AUFS_LINKS):
            os.mkdir(_AUFS_LINKS, 0o700)
            self._skeleton.whole = False
        self._make(entry, name)
        self.inodes -= 1

    def _swallow(self, entry: Entry) -> None:
        """The content of an entry that makes no file stays in the skeleton."""
        self._file = -1
        self._entry = entry

    def _root(self, entry: Entry) -> None:
        if entry.type != tar_stream.DIRECTORY:
            raise TarError("the layer's root is not a directory")
        self.has_root = True
        self._set_directory(entry, b"")

    def _make(self, entry: Entry, path: bytes) -> None:
        try:
            self._create(entry, path)
        except FileExistsError:
            if self._replace(entry, path):
                self._create(entry, path)

    def _create(self, entry: Entry, path: bytes) -> None:
        kind = entry.type
        if kind == tar_stream.REGULAR:
            self._regular(entry, path)
            self.bytes += _disk_bytes(entry)
        elif kind == tar_stream.DIRECTORY:
            os.mkdir(path, entry.mode)
            self._set_directory(entry, path)
        elif kind == tar_stream.LINK:
            target = self._link_target(entry)
            if target.startswith(path + b"/"):
                raise TarError(f"{shown(entry.name)} is a hard link to something below itself")
            os.link(target, path, follow_symlinks=False)
            return
        elif kind == tar_stream.SYMLINK:
            os.symlink(entry.link, path)
            self._set_other(entry, path)
        else:
            self._device(entry, path)
            self._set_other(entry, path)
        self.inodes += 1

    def _regular(self, entry: Entry, path: bytes) -> None:
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
                self._set_xattrs(entry, self._file)
            mtime = _time(entry)
            os.utime(self._file, ns=(mtime, mtime))
        finally:
            os.close(self._file)
            self._file = -1
            self._entry = None
            self._segments = None

    def _device(self, entry: Entry, path: bytes) -> None:
        if entry.type == tar_stream.FIFO:
            os.mkfifo(path, entry.mode)
            return
        kind = stat.S_IFCHR if entry.type == tar_stream.CHAR else stat.S_IFBLK
        os.mknod(path, kind | entry.mode, os.makedev(entry.major, entry.minor))

    def _set_other(self, entry: Entry, path: bytes) -> None:
        """Owner, mode and times of what is neither a file nor a directory."""
        if entry.uid or entry.gid or self._inherits_group:
            os.lchown(path, entry.uid, entry.gid)
        if entry.type != tar_stream.SYMLINK and entry.mode & _SPECIAL_BITS:
            os.chmod(path, entry.mode)
        if entry.xattrs:
            self._set_xattrs(entry, path)
        mtime = _time(entry)
        os.utime(path, ns=(mtime, mtime), follow_symlinks=False)

    def _set_directory(self, entry: Entry, path: bytes) -> None:
        target = path or b"."
        os.lchown(target, entry.uid, entry.gid)
        os.chmod(target, entry.mode)
        if entry.mode & stat.S_ISGID:
            self._inherits_group = True
        if entry.xattrs:
            self._set_xattrs(entry, target)
            self.attributed = True
        if path not in self._times:
            self.bytes += _PAGE
        self._times[path] = _time(entry)
        self._parents[path] = path

    def _set_xattrs(self, entry: Entry, target: bytes | int) -> None:
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
                    why = "the file system has no room for it" if error.errno == errno.ENOSPC else error.strerror
                    raise TarError(f"{shown(entry.name)}: its attribute {shown(name)} cannot be set: {why}") from None
                if not ignorable:
                    raise

    def _replace(self, entry: Entry, path: bytes) -> bool:
        """Makes way for a later entry of the same name. Returns whether the entry is still to be created.

        A directory over a directory only takes on the new attributes. A directory over anything else hides what lower
        layers have there, as the thing that it replaces did.
        """
        status = os.lstat(path)
        is_directory = entry.type == tar_stream.DIRECTORY
        if stat.S_ISDIR(status.st_mode):
            if is_directory:
                self._set_directory(entry, path)
                return False
            if entry.type == tar_stream.LINK and normalise(entry.link) == path:
                raise TarError(f"{shown(entry.name)} is a hard link to itself")
            removal.remove_tree(path)
            self._skeleton.whole = False
            self._forget(path)
            return True
        if entry.type == tar_stream.LINK and os.path.samestat(status, os.lstat(self._link_target(entry))):
            return False
        os.unlink(path)
        if not is_whiteout(status):
            self.inodes -= 1
            if stat.S_ISREG(status.st_mode) and status.st_size:
                self._skeleton.whole = False
        self._parents = {b"": b""}
        if not is_directory:
            return True
        self._create(entry, path)
        self._make_opaque(path)
        return False

    def _forget(self, path: bytes) -> None:
        """Drops what is remembered of a directory that is gone, and of what was below it."""
        below = path + b"/"
        self._parents = {b"": b""}
        self._times = {p: t for p, t in self._times.items() if p != path and not p.startswith(below)}
        self._opaque = {p for p in self._opaque if p != path and not p.startswith(below)}

    def _whiteout(self, raw_parent: bytes, base: bytes) -> None:
        if base.startswith(WHITEOUT_META):
            if base == _OPAQUE:
                self._make_opaque(self._directory(raw_parent))
            return
        name = base[len(_WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise TarError(f"{shown(base)} is a whiteout of nothing")
        parent = self._directory(raw_parent)
        path = parent + b"/" + name if parent else name
        try:
            os.mknod(path, stat.S_IFCHR, 0)
            self.inodes += 1
            self.whiteouts.append(path)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                self._make_opaque(path)

    def _make_opaque(self, path: bytes) -> None:
        os.setxattr(path or b".", OPAQUE_XATTR, b"y")
        self._opaque.add(path)

    def _link_target(self, entry: Entry) -> bytes:
        """Where a hard link's target lies in this layer; a target of a lower layer is copied up first."""
        name = normalise(entry.link)
        if not name:
            raise TarError(f"{shown(entry.name)} is a hard link to the root")
        raw_parent, _, base = name.rpartition(b"/")
        parent = self._directory(raw_parent)
        path = parent + b"/" + base if parent else base
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            found = self._lookup_lower(path)
            if found is None:
                raise TarError(f"{shown(entry.name)} is a hard link to {shown(entry.link)}, which is nowhere") from None
            if found.is_directory:
                raise TarError(f"{shown(entry.name)} is a hard link to a directory") from None
            self._copy_up(found, path)
            return path
        if stat.S_ISDIR(status.st_mode) or is_whiteout(status):
            raise TarError(f"{shown(entry.name)} is a hard link to {shown(entry.link)}, which is no file")
        return path

    def _directory(self, raw: bytes) -> bytes:
        """The real path, in this layer, of a directory as an entry names it; made if it is not there."""
        known = self._parents.get(raw)
        if known is not None:
            return known
        todo = raw.split(b"/")[::-1]
        real = b""
        followed = 0
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                real = real.rpartition(b"/")[0]
                continue
            path = real + b"/" + part if real else part
            target = self._step(path)
            if target is None:
                real = path
                continue
            followed += 1
            if followed > MAX_SYMLINKS:
                raise TarError(f"{shown(raw)} has more than {MAX_SYMLINKS} symbolic links on its way")
            if target.startswith(b"/"):
                real = b""
            todo += target.split(b"/")[::-1]
        self._parents[raw] = real
        return real

    def _step(self, path: bytes) -> bytes | None:
        """Sees to it that this layer has a directory at `path`; or returns the target of the symbolic link there."""
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return self._step_lower(path)
        if stat.S_ISDIR(status.st_mode):
            return None
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(path)
        if is_whiteout(status):
            os.unlink(path)
            self._make_default(path)
            self._make_opaque(path)
            return None
        raise TarError(f"{shown(path)} is not a directory, and an entry lies below it")

    def _step_lower(self, path: bytes) -> bytes | None:
        found = self._lookup_lower(path)
        if found is None:
            self._make_default(path)
            self.inodes += 1
            return None
        if found.is_symlink:
            return found.link_target()
        if not found.is_directory:
            raise TarError(f"{shown(path)} is not a directory in the layers below, and an entry lies below it")
        self._copy_up(found, path)
        return None

    def _make_default(self, path: bytes) -> None:
        """A directory of which nothing is known; a set-group-id parent must not show in it."""
        os.mkdir(path)
        os.lchown(path, 0, 0)
        os.chmod(path, _DEFAULT_DIRECTORY_MODE)
        self.bytes += _PAGE

    def _lookup_lower(self, path: bytes) -> Found | None:
        """What the layers below show at a path; None where this layer hides them."""
        if self._in_opaque(path):
            return None
        if self._lower is None:
            raise NeedsLower(os.fsdecode(path))
        return self._lower.lookup(path)

    def _in_opaque(self, path: bytes) -> bool:
        """Whether a directory of this layer hides what lower ones have at a path."""
        while path:
            path = path.rpartition(b"/")[0]
            if path in self._opaque:
                return True
        return False

    def _copy_up(self, found: Found, path: bytes) -> None:
        """Makes an object of a lower layer one of this layer, as overlayfs does before it changes one."""
        copy_object(found, path)
        self.inodes += 1
        if found.is_directory:
            self.bytes += _PAGE
            self._times[path] = found.status.st_mtime_ns
            if found.status.st_mode & stat.S_ISGID:
                self._inherits_group = True
        else:
            self.bytes += found.status.st_blocks * 512


def _disk_bytes(entry: Entry) -> int:
    """What a regular file takes: of a sparse one not the holes, whose size is whatever the archive says."""
    if entry.segments is None:
        return (entry.size + _PAGE - 1) & -_PAGE
    return sum((length + 2 * _PAGE - 1) & -_PAGE for _offset, length in entry.segments)


def _disk_is_full() -> bool:
    disk = os.statvfs(".")
    return disk.f_bavail < 64 or (disk.f_files > 0 and disk.f_favail < 1)


def _time(entry: Entry) -> int:
    return max(-_MAX_MTIME, min(entry.mtime, _MAX_MTIME))
