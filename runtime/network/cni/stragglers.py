"""Plugins that outlive the daemon.

When the daemon is killed while it runs a plugin, the plugin goes on, and could hand out an address after the daemon that
came back has undone the attachment. So each plugin inherits a descriptor of a file that is locked, and passes it on to
what it starts: the lock (flock(2), which belongs to the open file and not to a process) is free when the last of them has
ended. Before anything is undone that an earlier daemon began, the lock is waited for.

    <state>/cni/<sandbox id>            exists while plugins add this sandbox
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

PATIENCE_SECONDS: Final = 5.0
"""How long a plugin of a daemon that died may go on before it is killed."""

LOOK_SECONDS: Final = 0.02


class Stragglers:
    """The directory with the locks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def guard(self, sandbox_id: str) -> Iterator[int]:
        """The descriptor that plugins inherit; on leaving the body they have ended."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / sandbox_id
        # A new file each time: a lock that something left behind still has is of no interest any more.
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield fd
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)

    async def gone(self, sandbox_id: str) -> None:
        """Return when no plugin of an earlier daemon works on this sandbox any more."""
        path = self.directory / sandbox_id
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            if not await _free(fd):
                for pid in _holders(fd):
                    log.warning("killing a plugin that outlived its daemon", sandbox=sandbox_id, pid=pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await _free(fd)
        finally:
            os.close(fd)
        path.unlink(missing_ok=True)


async def _free(fd: int) -> bool:
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        else:
            return True


def _holders(fd: int) -> list[int]:
    """Other processes that have this file open."""
    wanted = os.fstat(fd)
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _has_open(int(name), wanted)]


def _has_open(pid: int, wanted: os.stat_result) -> bool:
    if pid == os.getpid():
        return False
    with contextlib.suppress(OSError):  # it has ended
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), wanted):
                    return True
    return False
