"""The daemon's side of the fork server (shim/forkserver.py): jobs in forked children, and shims.

    server = await ForkServer.start(["shim.supervisor"])
    result = await server.run_job("shim.sandbox:create", {...}, timeout=10)
    await server.spawn_shim(ShimOptions(...))

A failed job is a CrispError with the job's own code and message.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog

import shim
from kernel import cgroups
from proto import shim_protocol
from proto.errors import Code, CrispError
from proto.shim_protocol import Message
from runtime.shims.sealed_programs import SealedPrograms
from runtime.shims.spares import Spare, Spares
from shim import forkserver

log = structlog.get_logger(__name__)

ANSWER_SECONDS = 20.0  # that the server may take to fork; one that is stopped is killed then, and another one started
MAX_REPORT = 16 << 20  # bytes of a job's result
SHIM = "shim.supervisor:main"
SHIM_SECONDS = 30.0  # until a shim that was forked must listen
_ROOMS = os.path.dirname(os.path.dirname(os.path.abspath(shim.__file__)))
"""Where the fork server imports the room `shim` from: where this process does."""


class ForkServer:
    """A fork server; one of the daemon's own children, which dies with it. If it dies first, the next job starts another."""

    def __init__(self, preload: Sequence[str]) -> None:
        self._preload = preload
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process
        self._channel: socket.socket
        self._spares = Spares(self._fork)
        self._programs = SealedPrograms()

    @classmethod
    async def start(cls, preload: Sequence[str]) -> ForkServer:
        """Start one that imports `preload`; it is up when the first job answers."""
        server = cls(preload)
        await server._launch()
        return server

    async def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-S", "-P", "-m", "shim.forkserver", "--fd", str(theirs.fileno()), "--preload", *self._preload),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                # Nothing of the daemon's environment may reach OCI runtimes and containers.
                env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": _ROOMS},
                start_new_session=True,
            )
        self._channel = ours

    @property
    def alive(self) -> bool:
        """Whether the server runs."""
        return self._process.returncode is None

    @property
    def pid(self) -> int:
        """The server's own pid."""
        return self._process.pid

    async def run_job(self, job: str, args: Message, fds: Sequence[int] = (), timeout: float | None = None) -> Message:
        """Run `module:function` in a child and return its result; past `timeout` seconds the child is killed.

        The caller keeps `fds`; the child gets copies.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        request = json.dumps({"job": job, "args": args}).encode()
        with ours:
            pidfd = -1
            try:
                async with asyncio.timeout(timeout):
                    with theirs, _carried(request) as (datagram, extra):
                        pidfd = await self._fork(datagram, [theirs.fileno(), *fds, *extra])
                    report = await _read_report(ours)
            except BaseException as error:
                _kill(pidfd)
                if isinstance(error, TimeoutError):
                    message = f"{job.partition(':')[2]} took more than {timeout:g} s and was killed"
                    raise CrispError(Code.DEADLINE_EXCEEDED, message) from None
                raise
            finally:
                if pidfd >= 0:
                    os.close(pidfd)
        return _result(job, report)

    async def _fork(self, request: bytes, fds: list[int]) -> int:
        """Have the server fork; a pidfd of the child, -1 if it has ended already."""
        exchange = asyncio.ensure_future(self._exchange(request, _copies(fds)))
        try:
            return await asyncio.shield(exchange)
        except asyncio.CancelledError:
            # Answers come in the order of requests: one that is left unread would be taken for the next one's.
            exchange.add_done_callback(_kill_child_of)
            raise

    async def _exchange(self, request: bytes, fds: list[int]) -> int:
        """Send one request and receive its answer; `fds` are closed."""
        try:
            async with self._turn:
                answer, pidfds = await self._ask(request, fds)
                if not answer:
                    log.error("the fork server has died and is started again", pid=self.pid)
                    self._channel.close()
                    with suppress(ProcessLookupError):
                        self._process.kill()  # if it is there: stopped, or hanging
                    await self._launch()
                    answer, pidfds = await self._ask(request, fds)
        finally:
            for fd in fds:
                os.close(fd)
        if not answer:
            raise CrispError(Code.UNAVAILABLE, f"the fork server (pid {self.pid}) has ended")
        return pidfds[0] if pidfds else -1

    async def _ask(self, request: bytes, fds: list[int]) -> tuple[bytes, list[int]]:
        """The server's answer with its pidfd; no bytes if the server is dead, or does not answer."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await _until_writable(loop, self._channel)
                socket.send_fds(self._channel, [request], fds)
                await _until_readable(loop, self._channel)
                answer, pidfds, _, _ = socket.recv_fds(self._channel, 4096, 1)
        except (OSError, TimeoutError):
            return b"", []
        return answer, pidfds

    async def spawn_shim(self, options: ShimOptions) -> None:
        """Start a shim; when this returns, `ShimClient.connect(options.bundle)` works."""
        arguments = options.arguments()
        fds: list[int] = []
        if options.seal and (copy := await self._programs.copy_of(options.runtime_path)) is not None:
            fds, arguments["runtime"]["sealed"] = [copy.fd], copy.version
        try:
            spare = self._spares.take(arguments)
            if spare is None or not await _become(spare, arguments, fds):
                await self.run_job(SHIM, arguments, fds, timeout=SHIM_SECONDS)
        finally:
            for fd in fds:
                os.close(fd)
            self._spares.prepare()

    def expect_shims(self) -> None:
        """Containers are about to be made: have shims wait for them."""
        self._spares.prepare()

    async def close(self) -> None:
        """End the server; shims go on."""
        await self._spares.close()
        self._programs.close()
        self._channel.close()
        await self._process.wait()


@dataclass(frozen=True)
class ShimOptions:
    """What a shim is told when it is forked."""

    id: str
    bundle: str
    runtime_name: str
    runtime_path: str
    runtime_root: str
    cgroup: str
    """The container's cgroup below the hierarchies' roots: `cgroups.container_path`."""
    hierarchies: cgroups.Hierarchies
    systemd_cgroup: bool = False
    detach_unified: bool = False
    """Hide the cgroup2 mount of a hybrid host from `create`: crun 1.8 refuses to run otherwise."""
    delete_is_removal: bool = False
    start_is_a_byte: bool = False
    """For both see `shim.oci_runtime.Runtime`."""
    seal: bool = False
    """Have the runtime executed from a sealed copy: for those that make one themselves if they are not."""
    oom_score_adj: int | None = None
    shim_cgroup: str | None = None

    def arguments(self) -> Message:
        """The arguments of the job `shim.supervisor:main`."""
        mode, controllers, unified = self.hierarchies
        return {
            "version": shim_protocol.VERSION,
            "id": self.id,
            "bundle": self.bundle,
            "runtime": {
                "name": self.runtime_name,
                "path": self.runtime_path,
                "root": self.runtime_root,
                "systemd_cgroup": self.systemd_cgroup,
                "delete_is_removal": self.delete_is_removal,
                "start_is_a_byte": self.start_is_a_byte,
            },
            "cgroup": self.cgroup,
            "hierarchies": [mode.value, controllers, unified],
            "detach_unified": self.detach_unified,
            "oom_score_adj": self.oom_score_adj,
            "shim_cgroup": self.shim_cgroup,
        }


async def _become(spare: Spare, arguments: Message, fds: Sequence[int]) -> bool:
    """Have a spare be the shim that is wanted; False if it has ended, or does. Its failure is raised, as a job's."""
    try:
        if not spare.begin(arguments, fds):
            return False
        try:
            async with asyncio.timeout(SHIM_SECONDS):
                report = await _read_report(spare.report)
                if not report:  # killed: another one can have its bundle once it has let go of the lock
                    await spare.gone()
                    return False
        except TimeoutError:
            raise CrispError(Code.DEADLINE_EXCEEDED, f"a shim took more than {SHIM_SECONDS:g} s and was killed") from None
        _result(SHIM, report)
    except BaseException:
        spare.kill()
        raise
    finally:
        spare.close()
    return True


@contextmanager
def _carried(request: bytes) -> Iterator[tuple[bytes, list[int]]]:
    """What is sent for a request, and the descriptor of what is too large for a datagram."""
    if len(request) <= forkserver.MAX_REQUEST:
        yield request, []
        return
    if len(request) > forkserver.MAX_LARGE_REQUEST:
        raise CrispError(Code.RESOURCE_EXHAUSTED, f"a job's arguments are {len(request)} bytes long")
    with open(os.memfd_create("job", os.MFD_CLOEXEC), "wb", buffering=0) as file:
        file.write(request)
        yield forkserver.IN_LAST_FD, [file.fileno()]


def _copies(fds: Sequence[int]) -> list[int]:
    """All of them, or none: OSError."""
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError:
        for copy in copies:
            os.close(copy)
        raise
    return copies


def _kill(pidfd: int) -> None:
    """SIGKILL the process, if it is there."""
    if pidfd >= 0:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _kill_child_of(exchange: asyncio.Future[int]) -> None:
    """End the child of a request that nobody waits for any more."""
    if not exchange.cancelled() and exchange.exception() is None and (pidfd := exchange.result()) >= 0:
        _kill(pidfd)
        os.close(pidfd)


async def _read_report(channel: socket.socket) -> bytes:
    """What a job reports, to the end of file."""
    loop = asyncio.get_running_loop()
    parts: list[bytes] = []
    size = 0
    while part := await loop.sock_recv(channel, 1 << 16):
        parts.append(part)
        size += len(part)
        if size > MAX_REPORT:
            raise CrispError(Code.RESOURCE_EXHAUSTED, f"a job reported more than {MAX_REPORT} bytes")
    return b"".join(parts)


def _result(job: str, report: bytes) -> Message:
    """The result in a report, or its error raised."""
    message = shim_protocol.decode(report)
    if message is None:
        raise CrispError(Code.INTERNAL, f"{job} ended without a result")
    if "error" in message:
        raise shim_protocol.error_from(message["error"])
    result = message.get("ok")
    return result if isinstance(result, dict) else {}


async def _until_readable(loop: asyncio.AbstractEventLoop, channel: socket.socket) -> None:
    """Wait for a datagram or the end."""
    ready = asyncio.Event()
    loop.add_reader(channel.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(channel.fileno())


async def _until_writable(loop: asyncio.AbstractEventLoop, channel: socket.socket) -> None:
    """Wait for room for a datagram."""
    ready = asyncio.Event()
    loop.add_writer(channel.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(channel.fileno())
