"""The daemon's side of the worker server: starts it when there is work, ends it when there was none for a while.

Every job has a socket of its own. A job whose caller is cancelled is killed, and is waited for, before the cancellation goes
on: whoever cleans up its directory afterwards meets nobody there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from imagesvc.worker import jobs
from kernel.descriptors import write_all
from proto.errors import Code, CrispError

log = structlog.get_logger()

_IDLE_SECONDS = 60.0
_ATTEMPTS = 3
"""Servers that may die before they have begun a job."""
_MAX_REPLY = 64 * 1024


class JobFailed(Exception):
    """A job's own failure: its kind (`bad`, `needs_lower`, `os`, `defect`), message and details."""

    def __init__(self, reply: Mapping[str, Any]) -> None:
        super().__init__(str(reply.get("message", "")))
        self.kind = str(reply["error"])
        self.message = str(reply.get("message", ""))
        self.errno = int(reply.get("errno", 0))
        self.path = str(reply.get("path", ""))


class WorkerPool:
    """At most `parallel` jobs at a time; more wait their turn."""

    def __init__(self, parallel: int) -> None:
        self._slots = asyncio.Semaphore(parallel)
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._running = 0
        self._idle: asyncio.TimerHandle | None = None

    async def run(self, request: Mapping[str, Any], job: Job | None = None) -> dict[str, Any]:
        """Runs a job to its end and returns what it answers.

        Raises:
            JobFailed: what the job says went wrong.
            CrispError: INTERNAL where the worker died.
        """
        async with self._slots:
            self._running += 1
            try:
                return await self._run(request, job or Job())
            finally:
                self._running -= 1
                self._plan_end()

    async def _run(self, request: Mapping[str, Any], job: Job) -> dict[str, Any]:
        """Runs it on the server, which is started first if need be, and again if it dies before it has begun the job."""
        descriptor = _written(json.dumps(request).encode())
        try:
            return await self._run_written(descriptor, str(request["job"]), job)
        finally:
            os.close(descriptor)

    async def _run_written(self, request: int, name: str, job: Job) -> dict[str, Any]:
        """The request is in a file, whose descriptor is sent: it may be of any size, and a message may not."""
        for _attempt in range(_ATTEMPTS):
            control = await self._start()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            with ours:
                try:
                    with theirs:
                        await _send_fds(control, [theirs.fileno(), request])
                    return await job.follow(ours, name)
                except OSError:
                    if control is self._control:
                        self._end()
        raise CrispError(Code.INTERNAL, "the worker process dies before it begins its jobs; was it killed?")

    async def _start(self) -> socket.socket:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        async with self._starting:
            if self._control is None:
                self._control, self._process = await _launch()
        return self._control

    def _plan_end(self) -> None:
        if not self._running and self._control is not None:
            if self._idle is not None:
                self._idle.cancel()
            self._idle = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end)

    def _end(self) -> None:
        """Closing the socket is what ends the server."""
        control, self._control = self._control, None
        if control is not None:
            control.close()

    async def close(self) -> None:
        """Ends the server and waits for it; jobs that still run go on until their sockets close."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self._end()
        process, self._process = self._process, None
        if process is not None:
            await process.wait()


class Job:
    """One job as the daemon sees it while it runs."""

    def __init__(self, progress: Callable[[int], None] | None = None) -> None:
        self._progress = progress
        self._channel: socket.socket | None = None
        self._told: bytes | None = None

    def available(self, available: int, size: int) -> None:
        """Tells the job how much of its input is there. May be called before the job has started."""
        self._told = jobs.AVAILABLE.pack(available, size)
        if self._channel is not None:
            try:
                self._channel.send(self._told)
            except BlockingIOError:
                # Its queue is full of older, smaller numbers; the next call, or the retry, has a larger one.
                asyncio.get_running_loop().call_later(0.05, self._tell_again)
            except OSError:
                pass  # it has ended; its answer says why

    def _tell_again(self) -> None:
        if self._channel is not None and self._told is not None:
            self.available(*jobs.AVAILABLE.unpack(self._told))

    async def follow(self, channel: socket.socket, name: str) -> dict[str, Any]:
        """Reads what the job sends until it ends. Raises ConnectionError if it has not begun, and will not."""
        pidfd = -1
        reply: dict[str, Any] | None = None
        try:
            self._channel = channel
            if self._told is not None:
                self._tell_again()
            pidfd = await _receive_pidfd(channel)
        except (ConnectionError, CrispError):
            self._channel = None
            raise
        except BaseException:
            self._channel = None
            pidfd = await asyncio.shield(_end(channel, pidfd))
            if pidfd >= 0:
                os.close(pidfd)
            raise
        try:
            while message := await _receive(channel):
                if len(message) == jobs.PROGRESS.size:
                    if self._progress is not None:
                        self._progress(jobs.PROGRESS.unpack(message)[0])
                else:
                    reply = json.loads(message)
        except ConnectionError:
            pass
        except BaseException:
            pidfd = await asyncio.shield(_end(channel, pidfd))
            raise
        finally:
            self._channel = None
            if pidfd >= 0:
                os.close(pidfd)
        if reply is None:
            raise CrispError(Code.INTERNAL, f"the worker for {name!r} ended without an answer; was it killed?")
        if "trace" in reply:
            log.error("a worker failed where it must not", job=name, error=reply.get("message"), trace=reply["trace"])
        if "error" in reply:
            raise JobFailed(reply)
        ok: dict[str, Any] = reply["ok"]
        return ok


async def _receive(channel: socket.socket) -> bytes:
    """The next message, nothing at the end."""
    loop = asyncio.get_running_loop()
    try:
        return await loop.sock_recv(channel, _MAX_REPLY)
    except ConnectionResetError:
        # The kernel says once that the job has ended with something unread. What it has sent before is still there.
        return await loop.sock_recv(channel, _MAX_REPLY)


async def _receive_pidfd(channel: socket.socket) -> int:
    await _readable(channel.fileno())
    try:
        message, descriptors, _flags, _address = socket.recv_fds(channel, 16, 1)
    except ConnectionResetError:  # as in _receive
        message, descriptors, _flags, _address = socket.recv_fds(channel, 16, 1)
    if not message:
        raise ConnectionError
    if not descriptors:  # the job ends when its socket does
        raise CrispError(Code.RESOURCE_EXHAUSTED, "Too many open files: a worker's descriptor could not be received")
    return descriptors[0]


async def _end(channel: socket.socket, pidfd: int) -> int:
    """Kills a job, also one that has not yet said who it is, and returns when it is gone."""
    if pidfd < 0:
        try:
            pidfd = await _receive_pidfd(channel)
        except (OSError, CrispError):
            return pidfd
    await _kill(pidfd)
    return pidfd


async def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    await _readable(pidfd)


async def _readable(descriptor: int) -> None:
    """Returns when a descriptor has something to read: a message, or for a pidfd the end of its process."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)


async def _send_fds(control: socket.socket, descriptors: Sequence[int]) -> None:
    while True:
        try:
            socket.send_fds(control, [b"job"], descriptors)
        except BlockingIOError:
            await asyncio.sleep(0.005)
        else:
            return


def _written(data: bytes) -> int:
    """A file in memory that has the data."""
    descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        write_all(descriptor, data)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


async def _launch() -> tuple[socket.socket, asyncio.subprocess.Process]:
    """A server, and the socket by which it takes requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "imagesvc.worker.main",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_import_path())},
                start_new_session=True,
            )
        ours.setblocking(False)
    except BaseException:
        ours.close()
        raise
    return ours, process


def _import_path() -> Sequence[str]:
    """Where this process found its modules, so that the worker finds the same ones."""
    return [entry for entry in sys.path if entry]
