"""Control files kept open between looks.

Opening and closing a cgroup file costs four times what reading it does. Who looks at hundreds of groups every few seconds
keeps them open: an open file holds a page of kernel memory, and does not hold its group, whose removal only makes
the next read fail.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from types import TracebackType
from typing import Final, Self

from kernel.cgroup_stats import read

MOST_FILES: Final = 8192
_SHARE: Final = 4  # of the descriptors that the process may have, at most one in so many is kept
_BYTES: Final = 8192


class KeptFiles:
    """Use it as a context manager: one thread at a time reads, or a descriptor could be closed under another's hands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0.0  # since when the present thread has them
        self._files: dict[str, int] = {}
        self._used: dict[str, float] = {}
        self._capacity = min(MOST_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE)

    def __enter__(self) -> Self:
        self._lock.acquire()
        self._now = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()

    def __len__(self) -> int:
        return len(self._files)

    def read(self, path: str) -> bytes:
        """As `cgroup_stats.read`, for files of at most 8192 bytes."""
        fd = self._files.get(path)
        try:
            if fd is None:
                if len(self._files) >= self._capacity:
                    return read(path)
                fd = self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._used[path] = self._now
            return os.pread(fd, _BYTES, 0)
        except OSError:
            # ENODEV: the group is gone; another may be made at the same path later.
            self._close(path)
            return b""

    def close_unused(self, seconds: float) -> None:
        """Close what was not read for so long."""
        limit = time.monotonic() - seconds
        for path in [path for path, used in self._used.items() if used < limit]:
            self._close(path)

    def close(self) -> None:
        """Close all."""
        for path in list(self._files):
            self._close(path)

    def _close(self, path: str) -> None:
        self._used.pop(path, None)
        fd = self._files.pop(path, None)
        if fd is not None:
            os.close(fd)
