"""The container's log file: appended to, reopened between two lines, and never a reason for the container to wait.

When the disk is full, lines are dropped and their bytes counted; what the failed write left of a line is cut off, so that
the next line that fits follows the last whole one.
"""

from __future__ import annotations

import os

from shim import log_repair

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_MODE = 0o640


class LogFile:
    """An open log; with the path "" everything is dropped without being counted."""

    def __init__(self, path: str) -> None:
        self.path = path
        if path:
            log_repair.complete(path)
        self.lost = 0
        """Bytes of log lines that could not be written."""
        self._fd = os.open(path, _FLAGS, _MODE) if path else -1

    def write(self, lines: bytes) -> None:
        """Append whole lines."""
        if self._fd < 0 or not lines:
            return
        done = 0
        try:
            done = os.write(self._fd, lines)
            while done < len(lines):
                done += os.write(self._fd, memoryview(lines)[done:])
        except OSError:
            whole = lines.rfind(b"\n", 0, done) + 1
            self.lost += len(lines) - whole
            if done > whole:
                self._cut(done - whole)

    def _cut(self, surplus: int) -> None:
        """Take back the last `surplus` bytes, the torso of a line."""
        try:
            os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR) - surplus)
        except OSError:
            return  # not a regular file: the torso stays

    def reopen(self) -> None:
        """Continue in a file of the same name, made anew if it was renamed or removed; on failure, in the old one."""
        if not self.path:
            return
        fd = os.open(self.path, _FLAGS, _MODE)
        os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Close the file; writing does nothing from here on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
