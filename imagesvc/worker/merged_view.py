"""What a stack of layer directories shows at a path, as overlayfs would show it, without mounting it.

overlayfs.rst: "directories are merged", "a whiteout is created as a character device with 0/0 device number", "a directory
is made opaque by setting the xattr trusted.overlay.opaque to y". The look-up goes down component by component: a layer
takes part in a directory only if it has a directory there and no higher one has hidden it.

Paths are bytes, relative, without `.`, `..` and empty components, and are not followed through symbolic links: a component
that is a link is handed back as such.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

OPAQUE_XATTR = "trusted.overlay.opaque"


class Status(Protocol):
    """Of what os.stat_result says: type, device, size, and what it is that lies there."""

    @property
    def st_mode(self) -> int: ...  # noqa: D102
    @property
    def st_rdev(self) -> int: ...  # noqa: D102
    @property
    def st_size(self) -> int: ...  # noqa: D102
    @property
    def st_ino(self) -> int: ...  # noqa: D102


class Found(NamedTuple):
    """The topmost object at a path: the descriptor of the layer that has it, the path below that, and its lstat."""

    layer: int
    path: bytes
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.status.st_mode)

    def link_target(self) -> bytes:
        """Where the symbolic link points."""
        return os.readlink(self.path, dir_fd=self.layer)

    def xattrs(self) -> list[tuple[bytes, bytes]]:
        """Its extended attributes."""
        with _inside(self.layer):
            names = os.listxattr(self.path, follow_symlinks=False)
            return [(os.fsencode(n), os.getxattr(self.path, n, follow_symlinks=False)) for n in names]


class MergedView:
    """A read-only view of layer directories, given as open descriptors, topmost first.

    Directories are remembered: layers do not change. Descriptors rather than paths, so that a chrooted process can look.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self._directories: dict[bytes, tuple[int, ...]] = {b"": tuple(layers)}

    def lookup(self, path: bytes) -> Found | None:
        """The object at a path, or None where there is none or something is not a directory on the way."""
        for layer in self._merged(path.rpartition(b"/")[0]):
            try:
                status = os.lstat(path, dir_fd=layer)
            except (FileNotFoundError, NotADirectoryError):
                continue
            return None if is_whiteout(status) else Found(layer, path, status)
        return None

    def _merged(self, path: bytes) -> tuple[int, ...]:
        """The layers that make up a merged directory, topmost first; none where it is no directory."""
        known = self._directories.get(path)
        if known is None:
            # From the deepest ancestor that is known downwards: names may be deeper than Python recurses.
            todo = []
            while (known := self._directories.get(path)) is None:
                todo.append(path)
                path = path.rpartition(b"/")[0]
            for below in reversed(todo):
                known = self._directories[below] = self._merge(known, below)
        return known

    def _merge(self, above: tuple[int, ...], path: bytes) -> tuple[int, ...]:
        """The same for a path in a directory of which these are the layers."""
        merged = []
        for layer in above:
            try:
                status = os.lstat(path, dir_fd=layer)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not stat.S_ISDIR(status.st_mode):
                break
            merged.append(layer)
            with _inside(layer):
                if is_opaque(path):
                    break
        return tuple(merged)


@contextmanager
def _inside(layer: int) -> Iterator[None]:
    """Extended attributes have no *at calls: the process goes there and comes back. Single-threaded callers only."""
    home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(layer)
        yield
    finally:
        os.fchdir(home)
        os.close(home)


def is_whiteout(status: Status) -> bool:
    """Whether this is overlayfs' mark for "deleted here"."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: bytes) -> bool:
    """Whether a directory hides those below it."""
    try:
        return os.getxattr(directory, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError:
        return False
