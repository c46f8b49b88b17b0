"""A further process in the container, with streams of its own and a cgroup that ends with it.

The descriptors are lent to the session that asked: the shim copies nothing. The process is the shim's child as soon as
`exec --detach` has returned, for the shim is the subreaper.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from proto.errors import Code, CrispError
from proto.shim_protocol import Request
from shim import inheritance, pipes, process
from shim.loop import Loop
from shim.runner import Runner
from shim.tracking import Tracking, opened_procs, until

MAX_PROCESS = 16 << 20  # bytes of a process object
DROPPED_AT_ONCE = 16 << 10  # bytes of an output that nobody wants
KILL_TIME = 30.0  # seconds until a kill that does not succeed is reported


class Streams:
    """The two sides of an exec's streams."""

    def __init__(self, request: Request) -> None:
        self.lent: dict[str, int] = {}
        """What the session gets: name -> descriptor."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._child = [null, null, null]
        self._close = {null}
        try:
            if not request.flag("tty"):
                self._make_pipes(request)
        except OSError:  # no more descriptors: those that were to be had would be lost until the container's end
            self.close()
            raise

    def _make_pipes(self, request: Request) -> None:
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            if request.flag(name):
                read_fd, write_fd = pipes.make_pipe(1 << 16, pipes.INPUT if number == 0 else pipes.OUTPUT)
                self._child[number], self.lent[name] = (read_fd, write_fd) if number == 0 else (write_fd, read_fd)
                self._close.add(self._child[number])

    @property
    def child_fds(self) -> tuple[int, int, int]:
        """Descriptors 0 to 2 of the process."""
        return self._child[0], self._child[1], self._child[2]

    def release_child_ends(self) -> None:
        """Close the process's ends here."""
        for fd in self._close:
            os.close(fd)
        self._close = set()

    def close(self) -> None:
        """Close everything; what has been sent lives on at the receiver."""
        self.release_child_ends()
        for fd in self.lent.values():
            os.close(fd)
        self.lent = {}


class Exec:
    """One exec, from its request to its end."""

    def __init__(self, loop: Loop, runner: Runner, tracking: Tracking, bundle: str, identity: str) -> None:
        self.pid = 0
        self.ended = False
        self.left = False
        """Whether it goes on without its session."""
        self._loop = loop
        self._runner = runner
        self._identity = identity
        self._bundle = bundle
        self._tracking = tracking
        self._starting = False
        self._name = self._start_in = self._option = self._directory = ""  # its groups

    async def start(self, request: Request, process_fd: int, on_exit: Callable[[int], None]) -> Streams:
        """Run the process described by the JSON in `process_fd`; its streams, to be sent and closed.

        `on_exit` is called with the exit code, in a later round of the loop.
        """
        described = read_process(process_fd)
        score = inheritance.oom_score(described)
        streams = self._prepared(request)
        console = None
        process_file = f"/proc/{os.getpid()}/fd/{process_fd}"
        pid_file = os.path.join(self._bundle, f"{self._name}.pid")
        options = ["--detach", "--process", process_file, "--pid-file", pid_file]
        self._starting = True
        try:
            if request.flag("tty"):
                console = pipes.ConsoleSocket(self._bundle, f"{self._name}.sock")
                options += ["--tty", "--console-socket", console.path]
            if self._option:
                options += ["--cgroup", self._option]
            self._loop.claim()
            try:
                with opened_procs(self._start_in) as procs_fd:
                    call = self._runner.begin(
                        "exec",
                        *(*options, self._identity),
                        stdio=streams.child_fds,
                        procs_fd=procs_fd,
                        prepare=lambda: inheritance.take_oom_score(score),
                    )
                streams.release_child_ends()
                await call.finish(command_of(described))
                self.pid = read_pid(pid_file)
                inheritance.take_oom_score(score, self.pid)  # runc gives every exec the score of the container's creation
                ended = self._loop.child(self.pid)
            finally:
                self._loop.unclaim()
            if console is not None:
                streams.lent["tty"] = console.receive()
        except BaseException:
            streams.close()
            # The runtime may have been killed when the process ran already. Whatever ran is not the session's any more.
            if self._directory:
                await until(self._loop, lambda: self._tracking.kill_exec(self._name, self._directory), KILL_TIME)
            self.ended = True
            self._remove()
            raise
        finally:
            self._starting = False
            if console is not None:
                console.close()

        async def watch() -> None:
            await self._loop.sleep(0)  # the session answers before it hears of the end
            code, _ = process.exit_code(await ended)
            self.ended = True
            self._remove()
            on_exit(code)

        self._loop.spawn(watch())
        return streams

    def _prepared(self, request: Request) -> Streams:
        """Streams and groups, or nothing of either."""
        streams = Streams(request)
        try:
            self._name, self._start_in, self._option, self._directory = self._tracking.for_exec()
        except BaseException:
            streams.close()
            raise
        return streams

    def _remove(self) -> None:
        if self._directory:
            self._tracking.remove_exec(self._name, self._directory)

    def leave(self, outputs: list[int]) -> None:
        """Let it outlive its session, and take its outputs, so that it does not wait for ever for who reads them."""
        self.left = True
        for fd in outputs:
            _drop(self._loop, os.dup(fd))

    async def kill(self) -> None:
        """Kill the process and everything it has started, and see that they are gone; also if it is only being started."""

        def dead() -> bool:
            gone = self._tracking.kill_exec(self._name, self._directory) if self._directory else self._kill_leader()
            return gone and not self._starting

        if not await until(self._loop, dead, KILL_TIME):
            raise CrispError(Code.DEADLINE_EXCEEDED, f"processes of exec {self.pid} do not die: {self._directory}")
        if self.ended:
            self._remove()

    def _kill_leader(self) -> bool:
        """Without a cgroup2 mount: the process alone; its pid is ours until it is reaped."""
        if not self.ended and self.pid:
            os.kill(self.pid, 9)
        return True


def _drop(loop: Loop, fd: int) -> None:
    """Read a descriptor to its end, which for a terminal is an error, and close it."""
    os.set_blocking(fd, False)

    def on_readable(_events: int) -> None:
        try:
            data = os.read(fd, DROPPED_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            loop.remove(fd)
            os.close(fd)

    loop.add(fd, on_readable)


def read_pid(path: str) -> int:
    """The pid that the runtime wrote to `path`, which is removed."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pid = int(os.read(fd, 32) or b"0")
    finally:
        os.close(fd)
    os.unlink(path)
    return pid


def read_process(process_fd: int) -> dict[str, Any]:
    """The process object; an empty one if it is none, which the OCI runtime will say."""
    try:
        found = json.loads(os.pread(process_fd, MAX_PROCESS, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def command_of(process: dict[str, Any]) -> str:
    """The program that a process object names, for messages."""
    args = process.get("args")
    return str(args[0]) if isinstance(args, list) and args else ""
