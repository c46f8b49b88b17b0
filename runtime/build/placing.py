"""Putting files into a tree. It runs in a process whose root is that tree, so no name and no link leads out of it.

What is there already: directories stay and get what is new; a symbolic link to a directory is followed; anything else is
replaced by what comes under its name. A file never replaces a directory, nor the reverse.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from imagesvc.tar import tar_stream
from imagesvc.tar.header import TarError
from imagesvc.tar.tar_stream import Data, Entry
from imagesvc.worker.entry_names import normalise, shown
from imagesvc.worker.layer_directory import set_xattrs
from imagesvc.worker.layer_target import DEFAULT_DIRECTORY_MODE, mtime_of
from kernel.descriptors import pwrite_all, write_all

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Placer:
    """Takes entries and their data in the order of an archive, and makes files of them below `place`."""

    def __init__(self, place: str, owner: tuple[int, int] | None = None, *, devices: bool = True) -> None:
        """`place` is a directory that is made where there is none; `owner` the one of everything, None for its own."""
        self._place = os.fsencode(place.rstrip("/"))
        self._owner = owner
        self._devices = devices
        self._file = -1
        self._entry: Entry | None = None
        self._segments: list[tuple[int, int]] | None = None
        self._at = 0
        self._times: dict[bytes, int] = {}
        # A link of the image may lead to what is to be made.
        self._fresh = self.make_directory(os.path.realpath(self._place or b"/"))
        """Whether `place` is new: then it gets the attributes of the directory that is copied."""

    def make_directory(self, path: bytes) -> bool:
        """A directory with its parents; whether it was made."""
        missing = []
        while not os.path.isdir(path or b"/"):
            if os.path.lexists(path):
                raise NotADirectoryError(errno.ENOTDIR, "it is there, and no directory", os.fsdecode(path))
            missing.append(path)
            path = os.path.dirname(path)
        uid, gid = self._owner or (0, 0)
        for new in reversed(missing):
            os.mkdir(new)
            os.lchown(new, uid, gid)
            os.chmod(new, DEFAULT_DIRECTORY_MODE)
        return bool(missing)

    def take(self, event: Entry | Data, name: bytes | None = None) -> None:
        """An entry or a piece of its content. `name` is what an entry is called instead of its own."""
        if isinstance(event, Data):
            self._data(event.view)
            if event.last:
                self._end_file()
            return
        relative = normalise(event.name) if name is None else name
        path = self._place + b"/" + relative if relative else self._place or b"/"
        if self._owner is not None:
            event.uid, event.gid = self._owner
        if event.type == tar_stream.DIRECTORY:
            self._directory(event, path, top=not relative)
            return
        self._fresh = False  # a directory that comes after a file goes into what is there
        if not relative:
            raise TarError("an entry that is no directory has no name")
        self.make_directory(os.path.dirname(path))
        self._clear(path)
        if event.type == tar_stream.REGULAR:
            self._begin_file(event, path)
        elif event.type == tar_stream.LINK:
            os.link(self._place + b"/" + normalise(event.link), path, follow_symlinks=False)
        elif event.type == tar_stream.SYMLINK:
            os.symlink(event.link, path)
            self._finish(event, path)
        else:
            self._special(event, path)

    def finish(self) -> None:
        """Nothing more comes: directories get their times, which every file made in them has changed."""
        for path, mtime in self._times.items():
            os.utime(path, ns=(mtime, mtime))

    def _directory(self, entry: Entry, path: bytes, *, top: bool) -> None:
        self.make_directory(path)
        if top and not self._fresh:
            return  # it was there: what is copied goes into it, and it stays as it is
        if top:
            self._fresh = False
        os.chown(path, entry.uid, entry.gid)
        os.chmod(path, entry.mode)
        set_xattrs(entry, path)
        self._times[path] = mtime_of(entry)

    def _clear(self, path: bytes) -> None:
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "a directory is there, which a file does not replace", os.fsdecode(path))
        os.unlink(path)

    def _begin_file(self, entry: Entry, path: bytes) -> None:
        self._file = os.open(path, _CREATE, 0o600)
        self._entry = entry
        self._segments = None if entry.segments is None else list(reversed(entry.segments))
        self._at = 0
        if self._segments is not None:
            os.ftruncate(self._file, entry.size)
        if not entry.stored:
            self._end_file()

    def _data(self, view: memoryview) -> None:
        if self._segments is None:
            write_all(self._file, view)
            return
        while view:
            offset, length = self._segments.pop()
            piece = view[:length]
            pwrite_all(self._file, piece, offset)
            view = view[length:]
            if len(piece) < length:
                self._segments.append((offset + len(piece), length - len(piece)))

    def _end_file(self) -> None:
        entry = self._entry
        assert entry is not None
        os.fchown(self._file, entry.uid, entry.gid)
        os.fchmod(self._file, entry.mode)  # after the owner, which takes the set-id bits away
        set_xattrs(entry, self._file)
        os.utime(self._file, ns=(mtime_of(entry), mtime_of(entry)))
        os.close(self._file)
        self._file, self._entry = -1, None

    def _special(self, entry: Entry, path: bytes) -> None:
        if not self._devices and entry.type != tar_stream.FIFO:
            raise TarError(f"{shown(entry.name)} is a device, which a context does not have")
        if entry.type == tar_stream.FIFO:
            os.mkfifo(path, 0o600)
        else:
            kind = stat.S_IFCHR if entry.type == tar_stream.CHAR else stat.S_IFBLK
            os.mknod(path, kind | 0o600, os.makedev(entry.major, entry.minor))
        self._finish(entry, path)

    def _finish(self, entry: Entry, path: bytes) -> None:
        os.lchown(path, entry.uid, entry.gid)
        if entry.type != tar_stream.SYMLINK:
            os.chmod(path, entry.mode)
        set_xattrs(entry, path)
        os.utime(path, ns=(mtime_of(entry), mtime_of(entry)), follow_symlinks=False)
