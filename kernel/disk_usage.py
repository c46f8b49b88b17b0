"""What a directory takes of the disk, counted in slices, for a tree that is not ours to trust.

A container writes into the tree while it is counted. Depth, number of entries and length of names are no way to hide from
the count (trees.py). Hard links count once; past so many of them that to remember each would take memory, each link counts
for its share of the file.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from kernel import trees

_ENTRIES_PER_LOOK = 256  # at the clock
_LINKS = 65536
"""Files with several names that are remembered."""
_ROUNDS = 3
"""Counts of a tree whose directories are moved meanwhile: what the fullest has seen counts."""


class Walk:
    """Counts blocks and inodes below `root`, the root included."""

    def __init__(self, root: str) -> None:
        self.bytes = 0
        self.inodes = 0
        self._root = root
        self._bytes = self._inodes = 0.0
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
            for _round in range(_ROUNDS):
                try:
                    yield from self._once(root)
                except trees.Moved:
                    continue
                else:
                    return
        finally:
            os.close(root)

    def _once(self, root: int) -> Iterator[None]:
        self._bytes = self._inodes = 0.0
        self._linked.clear()
        self._count(os.fstat(root))
        try:
            for number, (_fd, _name, status) in enumerate(trees.walk(root), 1):
                self._count(status)
                if number % _ENTRIES_PER_LOOK == 0:
                    yield
        except OSError:
            pass  # a directory that cannot be read ends the count: the disk is broken
        finally:
            self.bytes = max(self.bytes, round(self._bytes))
            self.inodes = max(self.inodes, round(self._inodes))
        yield

    def _count(self, status: os.stat_result) -> None:
        share = 1.0
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            key = (status.st_dev, status.st_ino)
            if key in self._linked:
                return
            if len(self._linked) < _LINKS:
                self._linked.add(key)
            else:
                share = 1.0 / status.st_nlink
        self._bytes += status.st_blocks * 512 * share
        self._inodes += share
