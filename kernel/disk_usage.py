"""What a directory takes of the disk, counted in slices, for a tree that is not ours to trust.

A container writes into the tree while it is counted. So every directory is opened beneath the root, without following
symbolic links and without leaving the file system, and one descriptor is open at a time, however deep the tree is. What
cannot be opened (it went meanwhile, its name is longer than a path may be) counts for itself and not for its contents.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from kernel import syscalls

_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV
_ENTRIES_PER_LOOK = 256  # at the clock


class Walk:
    """Counts blocks and inodes below `root`, the root included; hard links count once."""

    def __init__(self, root: str) -> None:
        self.bytes = 0
        self.inodes = 0
        self._root = root
        self._linked: set[tuple[int, int]] = set()
        self._steps = self._walk()

    def step(self, seconds: float) -> bool:
        """Count for about so long; True once all is counted. Blocks."""
        deadline = time.monotonic() + seconds
        return all(time.monotonic() < deadline for _ in self._steps)

    def _walk(self) -> Iterator[None]:
        try:
            root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self._count(os.fstat(root))
            pending = [""]
            while pending:
                relative = pending.pop()
                try:
                    fd = syscalls.openat2(root, relative or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_BENEATH)
                    try:
                        yield from self._directory(fd, relative, pending)
                    finally:
                        os.close(fd)
                except OSError:
                    continue
        finally:
            os.close(root)

    def _directory(self, fd: int, relative: str, pending: list[str]) -> Iterator[None]:
        with os.scandir(fd) as entries:
            for number, entry in enumerate(entries, 1):
                try:
                    self._count(entry.stat(follow_symlinks=False))
                except FileNotFoundError:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(os.path.join(relative, entry.name))
                if number % _ENTRIES_PER_LOOK == 0:
                    yield
        yield

    def _count(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            key = (status.st_dev, status.st_ino)
            if key in self._linked:
                return
            self._linked.add(key)
        self.bytes += status.st_blocks * 512
        self.inodes += 1
