"""Applying one layer's tar to the layer's own tree, so that overlayfs shows what the image's author meant.

What the tree is made of is another's matter: a directory, or the image of a file system (layer_target.py).

Layers are unpacked side by side, each into its own tree, before it is known what lies below. That is right only for a
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
"""

from __future__ import annotations

import os
import stat

from imagesvc.limits import MAX_SYMLINKS, MAX_TREE_BYTES, MIB, Limits
from imagesvc.tar import tar_stream
from imagesvc.tar.header import TarError
from imagesvc.tar.skeleton import SkeletonWriter
from imagesvc.tar.tar_stream import Data, Entry
from imagesvc.worker.entry_names import WHITEOUT_META, in_metadata, normalise, shown
from imagesvc.worker.layer_target import Target, mtime_of
from imagesvc.worker.merged_view import Found, MergedView, is_whiteout

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS_LINKS = b".wh..wh.plnk"
_PAGE = 4096


def has_content(entry: Entry) -> bool:
    """Whether an entry makes a file that is not empty. TarError for a name that leads out of the layer."""
    if entry.type != tar_stream.REGULAR or not (entry.stored or entry.segments is not None):
        return False
    raw_parent, _, base = normalise(entry.name).rpartition(b"/")
    if not base or base.startswith(_WHITEOUT):
        return False
    return raw_parent == _AUFS_LINKS or not in_metadata(raw_parent)


class NeedsLower(Exception):
    """The layer depends on those below it; the message says at which path."""


class LayerWriter:
    """Applies tar events in order. Paths are relative to the layer's root.

    `lower` is None while the layers below are not known. After `finish`: `inodes`, `bytes` (of disk, in whole pages),
    `entries`, `depends` (whether it was made for the layers below), `attributed` (whether directories have extended
    attributes) and `has_root` (whether the tar had the root itself).
    """

    def __init__(self, target: Target, lower: MergedView | None, skeleton: SkeletonWriter, limits: Limits) -> None:
        self._target = target
        self._lower = lower
        self._skeleton = skeleton
        self._limits = limits
        self._parents: dict[bytes, bytes] = {b"": b""}
        self._times: dict[bytes, int] = {}
        self._opaque: set[bytes] = set()
        self.whiteouts: list[bytes] = []
        """Paths of whiteouts of which it is not known whether they hide anything."""
        self._has_file = False
        """Whether what comes through `data` is a file's content; else it stays in the skeleton."""
        self._kept = self._copied = 0
        """Bytes of the tree that are in memory, and of files that were copied from lower layers."""
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
        self._kept += len(entry.name) + len(entry.link)
        if entry.xattrs and entry.type == tar_stream.DIRECTORY:
            self._kept += sum(map(len, entry.xattrs.values()))
        if self._kept > MAX_TREE_BYTES:
            raise TarError(f"the names and links of the layer take more than {MAX_TREE_BYTES // MIB} MiB")
        self._has_file = False
        name = normalise(entry.name)
        if not name:
            self._root(entry)
            return
        raw_parent, _, base = name.rpartition(b"/")
        if base.startswith(_WHITEOUT):
            self._whiteout(raw_parent, base)
            return
        parent = self._parents.get(raw_parent)
        if parent is None:
            if in_metadata(raw_parent):
                if raw_parent == _AUFS_LINKS and entry.type == tar_stream.REGULAR:
                    self._aufs_link(entry, name)
                return
            parent = self._directory(raw_parent)
        path = parent + b"/" + base if parent else base
        self._make(entry, path)

    def data(self, data: Data) -> None:
        """Takes in a piece of the last entry's content."""
        if self._has_file:
            self._target.data(data.view, data.last)
        else:
            self._skeleton.raw(bytes(data.view))

    def finish(self) -> None:
        """Removes whiteouts that hide nothing, and ends the tree."""
        target = self._target
        target.remove_tree(_AUFS_LINKS)
        kept = [path for path in self.whiteouts if self._is_whiteout(path)]
        self.whiteouts = [path for path in kept if not self._in_opaque(path)]
        for path in set(kept).difference(self.whiteouts):
            target.unlink(path)
        if self._lower is not None:
            for path in self.whiteouts:
                if self._lower.lookup(path) is None:
                    target.unlink(path)
            self.whiteouts = []
            for path in self._times:
                self._inherit_xattrs(self._lower, path)
        target.finish(self._times)

    def _is_whiteout(self, path: bytes) -> bool:
        try:
            return is_whiteout(self._target.lstat(path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _inherit_xattrs(self, lower: MergedView, path: bytes) -> None:
        """What a directory below has and this layer's does not: nobody has said that it is to go."""
        if not path or path in self._opaque or self._in_opaque(path):
            return
        found = lower.lookup(path)
        if found is None or not found.is_directory:
            return
        self.attributed |= self._target.inherit_xattrs(found, path)

    def _aufs_link(self, entry: Entry, name: bytes) -> None:
        """A file in AUFS' own directory, which is what the hard links of the layer lead to. It goes at the end."""
        try:
            self._target.mkdir(_AUFS_LINKS, 0o700)
            self._skeleton.whole = False
        except FileExistsError:
            pass
        self._make(entry, name)
        self.inodes -= 1

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
        target = self._target
        if kind == tar_stream.REGULAR:
            target.regular(entry, path)
            self._has_file = True
            self.bytes += _disk_bytes(entry)
        elif kind == tar_stream.DIRECTORY:
            target.mkdir(path, entry.mode)
            self._set_directory(entry, path)
        elif kind == tar_stream.LINK:
            source = self._link_target(entry)
            if source.startswith(path + b"/"):
                raise TarError(f"{shown(entry.name)} is a hard link to something below itself")
            target.link(source, path)
            return
        elif kind == tar_stream.SYMLINK:
            target.symlink(entry, path)
        else:
            target.device(entry, path)
        self.inodes += 1

    def _set_directory(self, entry: Entry, path: bytes) -> None:
        self._target.set_directory(entry, path)
        if entry.xattrs:
            self.attributed = True
        if path not in self._times:
            self.bytes += _PAGE
        self._times[path] = mtime_of(entry)
        self._parents[path] = path

    def _replace(self, entry: Entry, path: bytes) -> bool:
        """Makes way for a later entry of the same name. Returns whether the entry is still to be created.

        A directory over a directory only takes on the new attributes. A directory over anything else hides what lower
        layers have there, as the thing that it replaces did.
        """
        status = self._target.lstat(path)
        is_directory = entry.type == tar_stream.DIRECTORY
        if stat.S_ISDIR(status.st_mode):
            if is_directory:
                self._set_directory(entry, path)
                return False
            if entry.type == tar_stream.LINK and normalise(entry.link) == path:
                raise TarError(f"{shown(entry.name)} is a hard link to itself")
            self._target.remove_tree(path)
            self._skeleton.whole = False
            self._forget(path)
            return True
        if entry.type == tar_stream.LINK and status.st_ino == self._target.lstat(self._link_target(entry)).st_ino:
            return False
        self._target.unlink(path)
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
            self._target.whiteout(path)
            self.inodes += 1
            self.whiteouts.append(path)
        except FileExistsError:
            if stat.S_ISDIR(self._target.lstat(path).st_mode):
                self._make_opaque(path)

    def _make_opaque(self, path: bytes) -> None:
        self._target.make_opaque(path)
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
            status = self._target.lstat(path)
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
            status = self._target.lstat(path)
        except FileNotFoundError:
            return self._step_lower(path)
        if stat.S_ISDIR(status.st_mode):
            return None
        if stat.S_ISLNK(status.st_mode):
            return self._target.readlink(path)
        if is_whiteout(status):
            self._target.unlink(path)
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
        self._target.make_default(path)
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
        """Makes an object of a lower layer one of this layer, as overlayfs does before it changes one.

        The holes of a file are written: they could be as large as the layer's author likes.
        """
        if stat.S_ISREG(found.status.st_mode):
            self._copied += found.status.st_size
            if self._copied > self._limits.layer_bytes:
                raise TarError(f"its hard links copy more than this node's limit of {self._limits.layer_bytes} bytes")
        self._target.copy_up(found, path)
        self.inodes += 1
        if found.is_directory:
            self.bytes += _PAGE
            self._times[path] = found.status.st_mtime_ns
        else:
            self.bytes += found.status.st_blocks * 512


def _disk_bytes(entry: Entry) -> int:
    """What a regular file takes: of a sparse one not the holes, whose size is whatever the archive says."""
    if entry.segments is None:
        return (entry.size + _PAGE - 1) & -_PAGE
    return sum((length + 2 * _PAGE - 1) & -_PAGE for _offset, length in entry.segments)
