"""Pre-installed plugins: found in a directory, and started with a connection that they inherit as descriptor 3."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from runtime.nri.plugin import check_index, check_name

CONFIG_BYTES: Final = 1 << 20
WASM: Final = b"\0asm"
SOCKET: Final = 3
LEAVE_SECONDS: Final = 1.0
"""How long a plugin may take to leave once its connection is closed."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Installed:
    """A program in the directory of plugins."""

    path: Path
    index: str
    name: str
    config: str


def find(plugins: Path, configs: Path) -> list[Installed]:
    """The programs of the directory in order of their names; what cannot be used is said and left out. Blocks."""
    found = []
    try:
        names = sorted(os.listdir(plugins))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        log.warning("nri plugin not started", path=str(plugins), error=error.strerror)
        return []
    for file in names:
        path = plugins / file
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
                continue
            index, dash, name = file.partition("-")
            if problem := check_index(index) or (check_name(name) if dash else "its name is not NN-NAME"):
                log.warning("nri plugin not started", path=os.fsencode(path).decode(errors="replace"), error=problem)
                continue
            with open(path, "rb") as program:
                if program.read(len(WASM)) == WASM:
                    log.warning("nri plugin not started", path=str(path), error="WebAssembly is not supported")
                    continue
            found.append(Installed(path, index, name, _config(configs, index, name)))
        except (OSError, UnicodeDecodeError) as error:
            log.warning("nri plugin not started", path=str(path), error=str(error))
    return found


def _config(directory: Path, index: str, name: str) -> str:
    """Of NN-NAME.conf, else of NAME.conf, else nothing."""
    for file in (f"{index}-{name}.conf", f"{name}.conf"):
        try:
            with open(directory / file, "rb") as config:
                data = config.read(CONFIG_BYTES + 1)
        except FileNotFoundError:
            continue
        if len(data) > CONFIG_BYTES:
            raise OSError(errno.EFBIG, f"more than {CONFIG_BYTES} bytes", str(directory / file))
        return data.decode()
    return ""


class Process:
    """A plugin's process. Its output goes nowhere, as with other runtimes; plugins have log files of their own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        self._ended.set()
        log.info("nri plugin's process has ended", pid=self.pid, status=os.waitstatus_to_exitcode(status))

    async def end(self) -> None:
        """Wait for a short time, then kill it with its children; returns once it is gone."""
        try:
            await asyncio.wait_for(self._ended.wait(), LEAVE_SECONDS)
        except TimeoutError:
            if not self._ended.is_set():  # nobody has waited for it, so the group's number is still its own
                os.killpg(self.pid, signal.SIGKILL)
            await self._ended.wait()


def start(program: Installed) -> tuple[Process, socket.socket]:
    """Start a plugin, in a session of its own; its process and the daemon's end of the connection. Raises OSError."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with its:
        try:
            pid = os.posix_spawn(
                program.path,
                [str(program.path)],
                {
                    "NRI_PLUGIN_NAME": program.name,
                    "NRI_PLUGIN_IDX": program.index,
                    "NRI_PLUGIN_SOCKET": str(SOCKET),
                },
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, 0, 1),
                    (os.POSIX_SPAWN_DUP2, 0, 2),
                    (os.POSIX_SPAWN_DUP2, its.fileno(), SOCKET),
                ],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError:
            mine.close()
            raise
    mine.setblocking(False)
    return Process(pid), mine
