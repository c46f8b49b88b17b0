"""Programs that are executed from a sealed copy in memory (memfd_create(2), F_ADD_SEALS of fcntl(2)).

crun makes itself unwritable for the containers that it runs: for each call it copies its own file, or mounts it read-only,
and executes that. One that runs from a sealed memory file already finds it so, and goes on: half of what a short call takes.

Standard library only: the fork server's children use this.
"""

from __future__ import annotations

import fcntl
import os
from typing import NamedTuple

from kernel.descriptors import write_all

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""These and no others: crun looks for exactly them."""
_MFD_EXEC = 0x10  # Linux 6.3; without it vm.memfd_noexec forbids to execute the file
_MAX_SIZE = 64 << 20  # bytes


class Sealed(NamedTuple):
    """A copy of a program, and of what."""

    fd: int
    """The memory file, close-on-exec."""
    version: list[int]
    """Of the program's file when it was copied: device, inode, bytes, times of its last changes in ns."""

    def is_of(self, path: str) -> bool:
        """Whether the file at `path` is still the one that was copied: it may have been upgraded, for its safety's sake."""
        try:
            return version(os.stat(path)) == self.version
        except OSError:
            return False


def version(found: os.stat_result) -> list[int]:
    """What tells a file's content from another's."""
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def seal(path: str) -> Sealed:
    """Copy the program at `path` into a sealed memory file; OSError where there are none, or none that may be executed."""
    with open(path, "rb") as program:
        found = os.fstat(program.fileno())
        if found.st_size > _MAX_SIZE:
            raise OSError(f"{path} has more than {_MAX_SIZE} bytes")
        fd = _memory_file(os.path.basename(path))
        try:
            write_all(fd, program.read(found.st_size))
            if version(os.fstat(program.fileno())) != version(found) or os.fstat(fd).st_size != found.st_size:
                raise OSError(f"{path} changes while it is read")
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        except BaseException:
            os.close(fd)
            raise
    return Sealed(fd, version(found))


def _memory_file(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_EXEC)
    except OSError:
        return os.memfd_create(name, flags)
