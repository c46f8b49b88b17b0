"""A streaming backend whose containers are this machine's own processes, and whose pods are its loopback."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import socket
import struct
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from proto.errors import not_found
from runtime.network.netns import dial_in_netns


class LocalProcess:
    """A `ProcessIO` on a process of its own session."""

    def __init__(
        self, process: asyncio.subprocess.Process, stdin: int | None, stdout: int | None, stderr: int | None
    ) -> None:
        self.process = process
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.terminal = os.dup(stdout) if stdout is not None and os.isatty(stdout) else None
        self.closed = asyncio.Event()

    def resize(self, width: int, height: int) -> None:
        if self.terminal is not None:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    async def leave(self) -> None:
        pass

    async def close_stdin(self) -> None:
        pass

    async def wait(self) -> int:
        code = await self.process.wait()
        return code if code >= 0 else 128 - code

    async def close(self) -> None:
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()
        self.closed.set()


class Container:
    """A process that several clients can be attached to."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.clients: list[int] = []
        self.ended = asyncio.Event()
        self.copier = asyncio.create_task(self._copy())

    async def _copy(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(65536):
            for fd in self.clients:
                with suppress(BrokenPipeError):
                    os.write(fd, data)
        for fd in self.clients:
            os.close(fd)
        await self.process.wait()
        self.ended.set()


class Attached:
    """A `ProcessIO` on a Container."""

    stderr = None

    def __init__(self, container: Container, *, stdin: bool) -> None:
        self._container = container
        self.stdout, theirs = os.pipe()
        container.clients.append(theirs)
        self.stdin: int | None = None
        if stdin:
            assert container.process.stdin is not None
            self.stdin = os.dup(container.process.stdin.transport.get_extra_info("pipe").fileno())  # type: ignore[attr-defined]

    def resize(self, width: int, height: int) -> None:
        pass

    async def leave(self) -> None:
        pass

    async def close_stdin(self) -> None:
        assert self._container.process.stdin is not None
        self._container.process.stdin.close()

    async def wait(self) -> int:
        await self._container.ended.wait()
        return 3

    async def close(self) -> None:
        pass


class LocalBackend:
    """Any container id will do for exec; attach needs one of `containers`."""

    def __init__(self) -> None:
        self.processes: list[LocalProcess] = []
        self.containers: dict[str, Container] = {}

    async def exec(
        self,
        container_id: str,
        cmd: Sequence[str],
        *,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        size: tuple[int, int] | None,
        changes: Mapping[str, Any],
    ) -> LocalProcess:
        if container_id == "missing":
            raise not_found(f"container {container_id} does not exist")
        if container_id == "broken":
            raise RuntimeError("a bug")
        made = await (self._tty(cmd, size) if tty else self._piped(cmd, stdin=stdin, stdout=stdout, stderr=stderr))
        self.processes.append(made)
        return made

    async def _tty(self, cmd: Sequence[str], size: tuple[int, int] | None) -> LocalProcess:
        master, slave = pty.openpty()
        if size is not None:
            termios.tcsetwinsize(master, (size[1], size[0]))

        def controlling() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        process = await asyncio.create_subprocess_exec(
            *cmd, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=controlling
        )
        os.close(slave)
        return LocalProcess(process, master, master, None)

    async def _piped(self, cmd: Sequence[str], *, stdin: bool, stdout: bool, stderr: bool) -> LocalProcess:
        pipes = {name: os.pipe() for name, wanted in (("in", stdin), ("out", stdout), ("err", stderr)) if wanted}
        null = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *cmd,
            stdin=pipes["in"][0] if stdin else null,
            stdout=pipes["out"][1] if stdout else null,
            stderr=pipes["err"][1] if stderr else null,
            start_new_session=True,
        )
        for name, end in (("in", 0), ("out", 1), ("err", 1)):
            if name in pipes:
                os.close(pipes[name][end])
        return LocalProcess(
            process,
            pipes["in"][1] if stdin else None,
            pipes["out"][0] if stdout else None,
            pipes["err"][0] if stderr else None,
        )

    async def add_container(self, *cmd: str) -> str:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*cmd, stdin=pipe, stdout=pipe)
        name = f"container{len(self.containers)}"
        self.containers[name] = Container(process)
        return name

    async def attach(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Attached:
        if container_id not in self.containers:
            raise not_found(f"container {container_id} does not exist")
        return Attached(self.containers[container_id], stdin=stdin)

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        return await dial_in_netns(None, port)

    async def close(self) -> None:
        for process in self.processes:
            await process.close()
        for container in self.containers.values():
            with suppress(ProcessLookupError):
                container.process.kill()
            await container.copier
