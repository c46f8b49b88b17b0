"""Sealed copies of OCI runtimes, one for each program, made anew when its file has changed."""

from __future__ import annotations

import os
import threading

import structlog

from kernel import sealed
from kernel.sealed import Sealed

log = structlog.get_logger(__name__)


class Programs:
    """Those of one fork server."""

    def __init__(self) -> None:
        self._copies: dict[str, Sealed] = {}
        self._lock = threading.Lock()

    def copy_of(self, path: str) -> Sealed | None:
        """A copy of the program that is at `path` now, its descriptor the caller's; None where there can be none. Blocks."""
        with self._lock:
            return self._copy_of(path)

    def _copy_of(self, path: str) -> Sealed | None:
        copy = self._copies.get(path)
        if copy is None or not copy.is_of(path):
            self._forget(path)
            try:
                copy = self._copies[path] = sealed.seal(path)
            except OSError as error:  # it is executed as it is then, which takes longer
                log.debug("no sealed copy of the OCI runtime", path=path, error=str(error))
                return None
        return copy._replace(fd=os.dup(copy.fd))

    def _forget(self, path: str) -> None:
        copy = self._copies.pop(path, None)
        if copy is not None:
            os.close(copy.fd)

    def close(self) -> None:
        """Shims have descriptors of their own."""
        for path in list(self._copies):
            self._forget(path)
