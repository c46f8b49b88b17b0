"""Sealed copies of OCI runtimes, one for each program, made anew when its file has changed."""

from __future__ import annotations

import asyncio
import os

import structlog

from imagesvc.uninterrupted import to_its_end
from kernel import sealed
from kernel.sealed import Sealed

log = structlog.get_logger(__name__)


class SealedPrograms:
    """Those of one fork server."""

    def __init__(self) -> None:
        self._copies: dict[str, Sealed] = {}
        self._turn = asyncio.Lock()

    async def copy_of(self, path: str) -> Sealed | None:
        """A copy of the program that is at `path` now, its descriptor the caller's; None where there can be none."""
        await to_its_end(self._renew(path))  # else who gives up meanwhile would leave a copy to nobody
        copy = self._copies.get(path)
        return copy and copy._replace(fd=os.dup(copy.fd))

    async def _renew(self, path: str) -> None:
        async with self._turn:
            known = self._copies.get(path)
            copy = await asyncio.to_thread(_current, path, known)
            if copy is not known:
                self._forget(path)
                if copy is not None:
                    self._copies[path] = copy

    def _forget(self, path: str) -> None:
        copy = self._copies.pop(path, None)
        if copy is not None:
            os.close(copy.fd)

    def close(self) -> None:
        """Shims have descriptors of their own."""
        for path in list(self._copies):
            self._forget(path)


def _current(path: str, known: Sealed | None) -> Sealed | None:
    """The known copy, or a new one if that is of another file. Blocks."""
    if known is not None and known.is_of(path):
        return known
    try:
        return sealed.seal(path)
    except OSError as error:  # it is executed as it is then, which takes longer
        log.debug("no sealed copy of the OCI runtime", path=path, error=str(error))
        return None
