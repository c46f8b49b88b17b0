"""What a layer is made into by unpack.py: a directory (layer_directory.py) or an image (layer_image.py).

Paths are relative to the layer's root, without `.`, `..` and symbolic links on the way. What is wrong raises the OSError
that the system call of that name would: FileExistsError where there is something, FileNotFoundError where there is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from imagesvc.tar.tar_stream import Entry
from imagesvc.worker.merged_view import Found, Status

DEFAULT_DIRECTORY_MODE = 0o755
MAX_MTIME = 1 << 62
"""Nanoseconds from the epoch, on either side."""


class Target(Protocol):
    """A layer being made."""

    def lstat(self, path: bytes) -> Status:
        """What is at a path."""
        ...

    def readlink(self, path: bytes) -> bytes:
        """Where a symbolic link points."""
        ...

    def regular(self, entry: Entry, path: bytes) -> None:
        """A new file. The entry's stored bytes, if it has any, follow through `data`."""
        ...

    def data(self, view: memoryview, last: bool) -> None:
        """A piece of the last file's content."""
        ...

    def mkdir(self, path: bytes, mode: int) -> None:
        """A new directory, for which `set_directory` follows."""
        ...

    def make_default(self, path: bytes) -> None:
        """A directory of which nothing is known: root's, of now."""
        ...

    def set_directory(self, entry: Entry, path: bytes) -> None:
        """Owner, mode and attributes of a directory."""
        ...

    def symlink(self, entry: Entry, path: bytes) -> None:
        """A new symbolic link."""
        ...

    def device(self, entry: Entry, path: bytes) -> None:
        """A new device or FIFO."""
        ...

    def link(self, target: bytes, path: bytes) -> None:
        """A new name of what is at `target`, which is no directory."""
        ...

    def whiteout(self, path: bytes) -> None:
        """A mark that what lower layers have there is gone."""
        ...

    def make_opaque(self, path: bytes) -> None:
        """A directory hides what lower layers have there."""
        ...

    def unlink(self, path: bytes) -> None:
        """Removes what is no directory."""
        ...

    def remove_tree(self, path: bytes) -> None:
        """Removes a directory and all that is in it, if it is there."""
        ...

    def copy_up(self, found: Found, path: bytes) -> None:
        """A copy of an object of a lower layer; of a directory not what is in it."""
        ...

    def inherit_xattrs(self, found: Found, path: bytes) -> bool:
        """Gives a directory the attributes of the one below it that it lacks; whether that one has any."""
        ...

    def finish(self, times: Mapping[bytes, int]) -> None:
        """Nothing more comes. `times` has the time of modification of each directory for which one was given."""
        ...


def mtime_of(entry: Entry) -> int:
    """An entry's time, in nanoseconds since the epoch, as far from it as every file system can say."""
    return max(-MAX_MTIME, min(entry.mtime, MAX_MTIME))
