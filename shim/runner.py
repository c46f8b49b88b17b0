"""Calls of the OCI runtime, from fork to verdict, without blocking the loop."""

from __future__ import annotations

import os
from collections.abc import Callable

from proto.errors import CrispError
from shim import oci_runtime, process
from shim.loop import Event, Loop
from shim.tracking import Tracking, opened_procs

MAX_KEPT = 1 << 16  # bytes after which runtime.log is begun anew; one older one is kept
MAX_LOG = 1 << 16  # bytes of a runtime's own log that are read


class Runner:
    """Runs one OCI runtime for one container."""

    def __init__(self, loop: Loop, runtime: oci_runtime.Runtime, tracking: Tracking, bundle: str) -> None:
        self.runtime = runtime
        self._tracking = tracking
        self._loop = loop
        self._bundle = bundle

    def begin(
        self,
        verb: str,
        *arguments: str,
        stdio: tuple[int, int, int] | None = None,
        procs_fd: int = -1,
        prepare: Callable[[], None] | None = None,
    ) -> Call:
        """Start a call; await its `finish`, or its `ended` and then ask for its `verdict`.

        Without `stdio` the runtime gets /dev/null. `procs_fd` and `prepare` are for the child, see `process.spawn`. Without
        `procs_fd` the call starts in the container's group for calls, so that a kill reaches it and its hooks.
        """
        if procs_fd < 0:
            with opened_procs(self._tracking.for_call()) as fd:
                return self._spawn(verb, arguments, stdio, fd, prepare)
        return self._spawn(verb, arguments, stdio, procs_fd, prepare)

    def _spawn(
        self,
        verb: str,
        arguments: tuple[str, ...],
        stdio: tuple[int, int, int] | None,
        procs_fd: int,
        prepare: Callable[[], None] | None,
    ) -> Call:
        # The log is a memory file that the runtime opens by this process's name for it. Its stderr cannot serve: a
        # container's init inherits it, and whoever reads it to the end waits for the container's end.
        log = os.memfd_create("oci-log", os.MFD_CLOEXEC)
        try:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            try:
                argv = self.runtime.command(verb, *arguments, log=f"/proc/{os.getpid()}/fd/{log}")
                pid = process.spawn(argv, stdio or (null, null, null), procs_fd, prepare, self.runtime.sealed)
            finally:
                os.close(null)
        except OSError:  # no more descriptors, or processes
            os.close(log)
            raise
        return Call(self.runtime, verb, self._loop.child(pid), log, f"{self._bundle}/runtime.log")

    async def call(self, verb: str, *arguments: str) -> None:
        """A call without streams."""
        await self.begin(verb, *arguments).finish()

    def release(self, identity: str) -> bool:
        """Let a created container's process go on, without the runtime's help; False if that is not how it waits.

        The process has the fifo open to read. Where nobody has, or there is none, the runtime knows what to say.
        """
        path = os.path.join(self.runtime.root, identity, "exec.fifo")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            os.unlink(path)  # before the byte, as the runtime does: the container counts as running without it
            os.write(fd, b"\0")
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def forget(self, identity: str) -> bool:
        """Remove what the runtime remembers of a container, without its help; False if that is more than plain files."""
        directory = os.path.join(self.runtime.root, identity)
        try:
            for name in os.listdir(directory):
                os.unlink(os.path.join(directory, name))
            os.rmdir(directory)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class Call:
    """A call under way. Its verdict must be asked for: it closes the log."""

    def __init__(self, runtime: oci_runtime.Runtime, verb: str, ended: Event[int], log: int, log_copy: str) -> None:
        self.ended = ended
        """The wait status."""
        self._runtime = runtime
        self._verb = verb
        self._log = log
        self._log_copy = log_copy

    async def finish(self, command: str = "", directory: str = "") -> None:
        """Wait for the end and raise a CrispError if it was a failure."""
        await self.ended
        error = await self.verdict(command, directory)
        if error is not None:
            raise error

    async def verdict(self, command: str = "", directory: str = "") -> CrispError | None:
        """Why the call failed, None if it did not; `command` and `directory` are named if they are at fault."""
        code, _ = process.exit_code(await self.ended)
        text = os.pread(self._log, MAX_LOG, 0)
        os.close(self._log)
        if text:
            keep(text, self._log_copy)
        if code == process.EXEC_FAILED and not text:
            text = f"{self._runtime.path} cannot be executed".encode()
        return oci_runtime.failure(self._runtime, self._verb, code, text, command, directory) if code else None


def keep(text: bytes, path: str) -> None:
    """Append to the bundle's runtime.log; a full disk or a bundle that has gone is no reason to fail.

    It is in memory (/run), and a probe can fail every second for years: what is old goes.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            if file.tell() > MAX_KEPT:
                os.replace(path, path + ".old")
                keep(text, path)
                return
            file.write(text)
    except OSError:
        return
