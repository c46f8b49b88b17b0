"""The container's log file: appended to, reopened between two lines, and never a reason for the container to wait.

When the disk is full, lines are dropped and their bytes counted; what the failed write left of a line is cut off, so that
the next line that fits follows the last whole one.
"""

from __future__ import annotations

import errno
import os
import stat

from proto.errors import failed_precondition
from shim import log_repair

# O_NONBLOCK: a FIFO without a reader would hold up everything that the shim does.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_MODE = 0o640


def open_log(path: str) -> int:
    """Open a log for appending; FAILED_PRECONDITION says what stands in its place that is none."""
    try:
        fd = os.open(path, _FLAGS, _MODE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise failed_precondition(f"log file {path}: it is a FIFO that nobody reads, or a socket") from None
        raise failed_precondition(f"log file {path}: {error.strerror}") from None
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFCHR):  # /dev/null is some people's log
        os.close(fd)
        raise failed_precondition(f"log file {path}: it is neither a file nor a character device")
    os.set_blocking(fd, True)
    return fd


class LogFile:
    """An open log; with the path "" everything is dropped without being counted."""

    def __init__(self, path: str) -> None:
        self.path = path
        if path:
            log_repair.complete(path)
        self.lost = 0
        """Bytes of log lines that could not be written."""
        self._fd = open_log(path) if path else -1

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
        fd = open_log(self.path)
        os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Close the file; writing does nothing from here on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
