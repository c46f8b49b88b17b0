"""A tree that becomes like another one, and of which nothing else is touched: what --squash makes its one layer of.

The tree is an overlay over the base image, so what is touched is the layer. Names are looked up from directory to directory
and no link is followed: neither tree leads anywhere else. The root's own attributes stay, for a layer has none of them.

A file of several names is right where all of them are names of one file already, and no other file has been right there:
a file that is not touched in the layer below would else keep names that are another file's now, and one that gets a name
more loses those it had, for an overlay copies it up under one of them.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from kernel import removal

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE: Final = 1 << 18
_OVERLAY: Final = "trusted.overlay."

_Files = dict[tuple[int, int], list[str]]
"""Names by file: its device and inode."""


class Becoming:
    """The directories are open; `changed` says whether anything was touched.

    `newest`: times of the tree that are later count as this one (nanoseconds since the epoch). It is above a plain directory
    then, which becomes a layer only with the image, and without later times.
    """

    def __init__(self, tree: int, wanted: int, newest: int | None = None) -> None:
        self._tree, self._wanted, self._newest = tree, wanted, newest
        self._names: dict[str, list[str]] = {}
        """For each name of a file with several: all of them, in the order of the walk."""
        self._there: dict[str, list[str]] = {}
        """The same of the tree, of the names that are wanted; none any more once the file is one that is wanted."""
        self.changed = False

    def run(self) -> None:
        """Do it. Raises OSError."""
        self._find_names(self._wanted, self._tree, "", {}, {})
        self._directory(self._wanted, self._tree, "")

    def _find_names(self, wanted: int, tree: int, path: str, theirs: _Files, ours: _Files) -> None:
        """Of a directory and what is below it; `tree` is -1 where there is none of that name."""
        there = set(os.listdir(tree)) if tree >= 0 else set()
        for name in sorted(os.listdir(wanted)):
            status = os.lstat(name, dir_fd=wanted)
            old = os.lstat(name, dir_fd=tree) if name in there else None
            if not stat.S_ISDIR(status.st_mode):
                _enter(status, path + name, theirs, self._names)
                if old is not None:
                    _enter(old, path + name, ours, self._there)
                continue
            inner = os.open(name, _DIRECTORY, dir_fd=wanted)
            below = os.open(name, _DIRECTORY, dir_fd=tree) if old is not None and stat.S_ISDIR(old.st_mode) else -1
            try:
                self._find_names(inner, below, f"{path}{name}/", theirs, ours)
            finally:
                os.close(inner)
                if below >= 0:
                    os.close(below)

    def _directory(self, wanted: int, tree: int, path: str) -> None:
        names, there = set(os.listdir(wanted)), set(os.listdir(tree))
        for name in there - names:
            if not stat.S_ISSOCK(os.lstat(_place(tree, name)).st_mode):  # a layer has none, so there is none to be hidden
                self._remove(tree, name)
        for name in sorted(names):
            status = os.lstat(_place(wanted, name))
            if stat.S_ISSOCK(status.st_mode):
                continue  # an archive has none
            if stat.S_ISDIR(status.st_mode):
                self._below(wanted, tree, name, f"{path}{name}/", new=name not in there)
            else:
                self._file(wanted, tree, name, path + name, status, new=name not in there)

    def _below(self, wanted: int, tree: int, name: str, path: str, *, new: bool) -> None:
        if not new and not stat.S_ISDIR(os.lstat(_place(tree, name)).st_mode):
            self._remove(tree, name)
            new = True
        if new:
            os.mkdir(name, 0o700, dir_fd=tree)
            self.changed = True
        inner = os.open(name, _DIRECTORY, dir_fd=wanted), os.open(name, _DIRECTORY, dir_fd=tree)
        try:
            self._directory(*inner, path)
            self._attributes(_place(inner[0], "."), _place(inner[1], "."))
        finally:
            for descriptor in inner:
                os.close(descriptor)

    def _file(self, wanted: int, tree: int, name: str, path: str, status: os.stat_result, *, new: bool) -> None:
        names = self._names.get(path, [path])
        first = names[0]
        if not new:
            there = self._there.get(path, [path])
            if first != path:
                right = self._is_link(tree, name, first)
            elif right := set(names) <= set(there) and self._same(wanted, tree, name, status):
                there.clear()
            if right:
                return
            self._remove(tree, name)
        self.changed = True
        if first != path:
            os.link(first, name, src_dir_fd=self._tree, dst_dir_fd=tree, follow_symlinks=False)
            return
        if stat.S_ISREG(status.st_mode):
            _copy(wanted, tree, name)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=wanted), name, dir_fd=tree)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=tree)
        self._attributes(_place(wanted, name), _place(tree, name))

    def _is_link(self, tree: int, name: str, first: str) -> bool:
        return os.path.samestat(os.lstat(_place(tree, name)), os.lstat(_place(self._tree, first)))

    def _remove(self, tree: int, name: str) -> None:
        if stat.S_ISDIR(os.lstat(_place(tree, name)).st_mode):
            removal.remove_tree(_place(tree, name))
        else:
            os.unlink(name, dir_fd=tree)
        self.changed = True

    def _attributes(self, wanted: str, tree: str) -> None:
        """Owner, mode, extended attributes and times, where they differ."""
        ours, theirs = os.lstat(tree), os.lstat(wanted)
        attributes, given = _xattrs(tree), _xattrs(wanted)
        if self._described(ours) == _described(theirs) and attributes == given:
            return
        self.changed = True
        os.lchown(tree, theirs.st_uid, theirs.st_gid)
        if not stat.S_ISLNK(theirs.st_mode):
            os.chmod(tree, stat.S_IMODE(theirs.st_mode))
        for name in attributes.keys() - given.keys():
            os.removexattr(tree, name, follow_symlinks=False)
        for name, value in given.items():
            os.setxattr(tree, name, value, follow_symlinks=False)  # after the owner, which takes capabilities away
        os.utime(tree, ns=(theirs.st_mtime_ns, theirs.st_mtime_ns), follow_symlinks=False)

    def _same(self, wanted: int, tree: int, name: str, theirs: os.stat_result) -> bool:
        """Whether what is there is what it is to be, the content too: times can be set back."""
        ours = os.lstat(_place(tree, name))
        if self._described(ours) != _described(theirs) or ours.st_rdev != theirs.st_rdev:
            return False
        if _xattrs(_place(tree, name)) != _xattrs(_place(wanted, name)):
            return False
        if stat.S_ISLNK(theirs.st_mode):
            return os.readlink(name, dir_fd=tree) == os.readlink(name, dir_fd=wanted)
        return not stat.S_ISREG(theirs.st_mode) or (ours.st_size == theirs.st_size and _same_content(wanted, tree, name))

    def _described(self, ours: os.stat_result) -> tuple[int, ...]:
        *others, mtime = _described(ours)
        return *others, mtime if self._newest is None else min(mtime, self._newest)


def _enter(status: os.stat_result, path: str, files: _Files, names: dict[str, list[str]]) -> None:
    """A name of a file; of those that have but one nothing is kept."""
    if status.st_nlink > 1:
        names[path] = files.setdefault((status.st_dev, status.st_ino), [])
        names[path].append(path)


def _place(directory: int, name: str) -> str:
    return f"/proc/self/fd/{directory}/{name}"


def _described(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns


def _xattrs(path: str) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if not name.startswith(_OVERLAY)}


def _same_content(wanted: int, tree: int, name: str) -> bool:
    with (
        open(os.open(name, _READ, dir_fd=wanted), "rb", buffering=0) as theirs,
        open(os.open(name, _READ, dir_fd=tree), "rb", buffering=0) as ours,
    ):
        while piece := theirs.read(_PIECE):
            if ours.read(len(piece)) != piece:
                return False
        return True


def _copy(wanted: int, tree: int, name: str) -> None:
    """The content; a piece of zeros stays a hole."""
    nothing = bytes(_PIECE)
    with (
        open(os.open(name, _READ, dir_fd=wanted), "rb", buffering=0) as source,
        open(os.open(name, _CREATE, 0o600, dir_fd=tree), "wb", buffering=0) as target,
    ):
        size = 0
        while piece := source.read(_PIECE):
            if piece != nothing[: len(piece)]:
                os.pwrite(target.fileno(), piece, size)
            size += len(piece)
        target.truncate(size)
