"""A file of which the only use is to be given up: `<root>/reserve`.

On a disk that is full to the last block the daemon could neither start nor record that something was removed, so that nobody
could ever make room. So it holds some room from the beginning and gives it up when a record cannot be written. Then new pods
and containers are refused, until there is room to hold again; what is there can be looked at, stopped and removed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

BYTES: Final = 4 << 20
"""SQLite's log, which every change goes through, grows to as much before it is used anew."""


class Reserve:
    """The room of one daemon."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = False

    def hold(self) -> bool:
        """Have the room; False if the disk has none."""
        if not self._held:
            try:
                self._held = _allocate(self._path)
            except OSError:
                with suppress(OSError):
                    os.unlink(self._path)
        return self._held

    def release(self) -> bool:
        """Give the room up; False if there was none to give."""
        self._held = False
        try:
            os.unlink(self._path)
        except OSError:
            return False
        return True


def _allocate(path: Path) -> bool:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_blocks * 512 < BYTES:
            os.posix_fallocate(fd, 0, BYTES)
    finally:
        os.close(fd)
    return True
