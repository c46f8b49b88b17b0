"""The daemon's side of the fork server and of the shims: asyncio over SOCK_SEQPACKET, descriptors as plain ints.

    server = await ForkServer.start(["shim.supervisor"])
    await server.spawn_shim(ShimOptions(...))
    shim = await ShimClient.connect(bundle)
    created = await shim.create(...)

Failures are CrispErrors. A shim that has gone away is UNAVAILABLE: what became of its container says
`read_exit_record(bundle)`, once `shim_alive(bundle)` is false.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kernel import cgroups
from proto import shim_protocol
from proto.errors import Code, CrispError
from proto.shim_protocol import MAX_DATAGRAM, MAX_FDS, Message
from shim import exit_record, pipes
from shim.exit_record import ExitRecord

MAX_REPORT = 16 << 20  # bytes of a job's result
_ROOMS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# --- the fork server -------------------------------------------------------------------------------------------


class ForkServer:
    """A running fork server; one of the daemon's own children, which dies with it."""

    def __init__(self, process: asyncio.subprocess.Process, channel: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls, preload: Sequence[str]) -> ForkServer:
        """Start one that has imported `preload`; it is up when the first job answers."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-S", "-P", "-m", "shim.forkserver", "--fd", str(theirs.fileno()), "--preload", *preload),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                # Nothing of the daemon's environment may reach OCI runtimes and containers.
                env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": _ROOMS},
                start_new_session=True,
            )
        return cls(process, ours)

    @property
    def pid(self) -> int:
        """The server's own pid."""
        return self._process.pid

    async def run_job(self, job: str, args: Message, fds: Sequence[int] = (), timeout: float | None = None) -> Message:
        """Run `module:function` in a child and return its result; past `timeout` seconds the child is killed.

        The caller keeps `fds`; the child gets copies.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pidfd = -1
        with ours:
            ours.setblocking(False)
            with theirs:
                request = json.dumps({"job": job, "args": args}).encode()
                pidfd = await self._fork(request, [theirs.fileno(), *fds])
            try:
                async with asyncio.timeout(timeout):
                    report = await _read_report(ours)
            except TimeoutError:
                message = f"{job.partition(':')[2]} took more than {timeout:g} s and was killed"
                raise CrispError(Code.DEADLINE_EXCEEDED, message) from None
            except BaseException:
                raise
            else:
                _close(pidfd)
                pidfd = -1
            finally:
                if pidfd >= 0:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    _close(pidfd)
        return _result(job, report)

    async def _fork(self, request: bytes, fds: list[int]) -> int:
        """Have the server fork; a pidfd of the child, -1 if it has ended already."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            try:
                await _until_writable(loop, self._channel)
                socket.send_fds(self._channel, [request], fds)
                await _until_readable(loop, self._channel)
                answer, pidfds, _, _ = socket.recv_fds(self._channel, 4096, 1)
            except OSError as error:
                raise CrispError(Code.UNAVAILABLE, f"the fork server is gone: {error}") from error
        if not answer:
            raise CrispError(Code.UNAVAILABLE, f"the fork server (pid {self.pid}) has ended")
        return pidfds[0] if pidfds else -1

    async def spawn_shim(self, options: ShimOptions) -> None:
        """Start a shim; when this returns, `ShimClient.connect(options.bundle)` works."""
        await self.run_job("shim.supervisor:main", options.arguments(), timeout=30)

    async def close(self) -> None:
        """End the server; shims go on."""
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
            },
            "cgroup": self.cgroup,
            "hierarchies": [mode.value, controllers, unified],
            "detach_unified": self.detach_unified,
            "oom_score_adj": self.oom_score_adj,
            "shim_cgroup": self.shim_cgroup,
        }


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


# --- one connection to a shim ----------------------------------------------------------------------------------


class _Connection:
    """Requests, answers and events of one session."""

    def __init__(self, channel: socket.socket, on_event: Callable[[Message], None]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._channel = channel
        self._on_event = on_event
        self._answers: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._seq = 0
        asyncio.get_running_loop().add_reader(channel.fileno(), self._on_readable)

    @classmethod
    def open(cls, bundle: str, on_event: Callable[[Message], None]) -> _Connection:
        """Connect to the shim of `bundle`; the kernel queues the connection, so nothing blocks."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # By descriptor, for a socket's name holds 108 bytes only.
                channel.connect(f"/proc/self/fd/{directory}/shim.sock")
            finally:
                os.close(directory)
        except OSError as error:
            channel.close()
            raise CrispError(Code.UNAVAILABLE, f"no shim answers in {bundle}: {error.strerror}") from error
        channel.setblocking(False)
        return cls(channel, on_event)

    def _on_readable(self) -> None:
        try:
            datagram, fds, _, _ = socket.recv_fds(self._channel, MAX_DATAGRAM, MAX_FDS)
        except BlockingIOError:
            return
        except OSError:
            datagram, fds = b"", []
        message = shim_protocol.decode(datagram)
        if message is None:
            _close(*fds)
            self.close()
        elif "event" in message:
            _close(*fds)
            self._on_event(message)
        else:
            self._resolve(message, fds)

    def _resolve(self, message: Message, fds: list[int]) -> None:
        answer = self._answers.pop(message.get("seq", 0), None)
        if answer is None or answer.done():
            _close(*fds)
        elif "error" in message:
            _close(*fds)
            answer.set_exception(shim_protocol.error_from(message["error"]))
        else:
            answer.set_result((message.get("ok") or {}, fds))

    async def request(self, op: str, fds: Sequence[int] = (), **fields: Any) -> tuple[Message, list[int]]:
        """Ask, and wait for the answer: its fields, and descriptors that are now the caller's."""
        if self.closed.done():
            raise CrispError(Code.UNAVAILABLE, f"{op}: the container's shim is gone")
        self._seq += 1
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Message, list[int]]] = loop.create_future()
        self._answers[self._seq] = answer
        datagram = shim_protocol.request(op, self._seq, fields)
        if len(datagram) > MAX_DATAGRAM:
            raise CrispError(Code.INVALID_ARGUMENT, f"{op}: {len(datagram)} bytes are more than the shim takes")
        try:
            socket.send_fds(self._channel, [datagram], fds)
        except OSError as error:
            self.close()
            raise CrispError(Code.UNAVAILABLE, f"{op}: the container's shim is gone: {error.strerror}") from error
        return await answer

    def close(self) -> None:
        """Close the session; what waits for an answer fails."""
        if self.closed.done():
            return
        self.closed.set_result(None)
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._channel.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(CrispError(Code.UNAVAILABLE, "the container's shim is gone"))
        self._answers.clear()


@dataclass(frozen=True)
class Created:
    """What `create` found out: ids are the container's own."""

    pid: int
    uid: int
    gid: int
    groups: list[int]


class ShimClient:
    """A control session with one shim."""

    def __init__(self, bundle: str) -> None:
        self.bundle = bundle
        self.hello: Message = {}
        """id, version, state, pid, started_at, tty, lost_log_bytes, exit; as of the time of connecting."""
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._exit: asyncio.Future[ExitRecord | None] = asyncio.get_running_loop().create_future()
        self._connection = _Connection.open(bundle, self._on_event)
        self._connection.closed.add_done_callback(self._on_closed)

    @classmethod
    async def connect(cls, bundle: str, timeout: float = 5.0) -> ShimClient:
        """Connect and read the shim's hello; UNAVAILABLE if none answers."""
        client = cls(bundle)
        try:
            async with asyncio.timeout(timeout):
                await client._greeted
        except TimeoutError:
            client.close()
            raise CrispError(Code.UNAVAILABLE, f"the shim in {bundle} does not answer") from None
        return client

    def _on_event(self, event: Message) -> None:
        record = event.get("exit") if event["event"] == "hello" else event if event["event"] == "exit" else None
        if event["event"] == "hello" and not self._greeted.done():
            self.hello = event
            self._greeted.set_result(None)
        if record is not None and not self._exit.done():
            self._exit.set_result(exit_record.from_fields(record))

    def _on_closed(self, _closed: object) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(CrispError(Code.UNAVAILABLE, f"the shim in {self.bundle} is gone"))
        if not self._exit.done():
            self._exit.set_result(read_exit_record(self.bundle))

    async def wait(self) -> ExitRecord | None:
        """Wait for the container's end; None if the shim went without leaving a record."""
        return await asyncio.shield(self._exit)

    async def gone(self) -> None:
        """Wait until the shim has put everything away and left."""
        await asyncio.shield(self._connection.closed)

    async def create(
        self,
        rootfs: Message,
        user: Message,
        *,
        mkdirs: Sequence[str] = (),
        stdin: bool = False,
        stdin_once: bool = False,
        tty: bool = False,
    ) -> Created:
        """Mount, resolve the user, `create`. `<bundle>/spec.json` has been written before."""
        fields: Message = {
            "rootfs": rootfs,
            "user": user,
            "mkdirs": list(mkdirs),
            "stdin": stdin,
            "stdin_once": stdin_once,
            "tty": tty,
        }
        result, _ = await self._connection.request("create", (), **fields)
        return Created(result["pid"], result["uid"], result["gid"], result["groups"])

    async def start(self, log_path: str) -> int:
        """Start the container; when it was started, in ns since the epoch. The log file exists by then."""
        result, _ = await self._connection.request("start", log_path=log_path)
        return int(result["started_at"])

    async def state(self) -> Message:
        """The present values of `hello`."""
        return (await self._connection.request("state"))[0]

    async def signal(self, number: int) -> None:
        """Signal the container's init."""
        await self._connection.request("signal", signal=number)

    async def kill(self) -> None:
        """Kill everything in the container; or, of a shim that has created nothing yet, the shim."""
        await self._connection.request("kill")

    async def close_stdin(self) -> None:
        """Close the shim's end of the container's stdin."""
        await self._connection.request("close_stdin")

    async def resize(self, width: int, height: int) -> None:
        """Set the size of the container's terminal, in characters."""
        await self._connection.request("resize", width=width, height=height)

    async def reopen_log(self) -> None:
        """Go on in a fresh log file."""
        await self._connection.request("reopen_log")

    async def update(self, resources: Message) -> None:
        """Change the limits to these OCI `linux.resources`."""
        with _payload(resources) as file:
            await self._connection.request("update", [file.fileno()])

    async def pause(self) -> None:
        """Freeze the container."""
        await self._connection.request("pause")

    async def resume(self) -> None:
        """Thaw the container."""
        await self._connection.request("resume")

    async def exec(
        self,
        process: Message,
        *,
        tty: bool = False,
        stdin: bool = False,
        stdout: bool = True,
        stderr: bool = True,
    ) -> ExecSession:
        """Run an OCI process object in the container, on a session of its own."""
        session = ExecSession(self.bundle)
        try:
            with _payload(process) as file:
                await session.begin([file.fileno()], tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)
        except BaseException:
            session.close()
            raise
        return session

    async def attach(self, *, stdin: bool = False, stdout: bool = True, stderr: bool = True) -> AttachSession:
        """Attach to the container's streams, on a session of its own."""
        session = AttachSession(self.bundle)
        try:
            await session.begin(stdin=stdin, stdout=stdout, stderr=stderr)
        except BaseException:
            session.close()
            raise
        return session

    def close(self) -> None:
        """Leave; the shim and the container go on."""
        self._connection.close()


class _StreamSession:
    """A session that has been lent descriptors, which are this object's until `close`, or until taken.

    To hand one over, set the attribute to -1. With a terminal, `stdin` writes to it, and `stdout` of an exec reads from it.
    """

    def __init__(self, bundle: str) -> None:
        self.stdin = -1
        self.stdout = -1
        self.stderr = -1
        self.tty = False
        self._terminal = -1
        self._connection = _Connection.open(bundle, self._on_event)

    def _on_event(self, event: Message) -> None:
        """Events of the container are the control session's business."""

    def _adopt(self, names: list[str], fds: list[int]) -> None:
        """Take over the descriptors that were sent."""
        lent = dict(zip(names, fds, strict=True))
        self._terminal = lent.pop("tty", -1)
        self.tty = self._terminal >= 0
        for name, fd in lent.items():
            setattr(self, name, fd)

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size, in characters; nothing happens without one."""
        if self._terminal >= 0:
            pipes.resize(self._terminal, width, height)

    def close(self) -> None:
        """Close the session and the descriptors; an exec that still runs is killed with all it has started."""
        _close(self.stdin, self.stdout, self.stderr, self._terminal)
        self.stdin = self.stdout = self.stderr = self._terminal = -1
        self._connection.close()


class ExecSession(_StreamSession):
    """One exec."""

    def __init__(self, bundle: str) -> None:
        self.pid = 0
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        super().__init__(bundle)
        self._connection.closed.add_done_callback(self._on_closed)

    async def begin(self, fds: list[int], **fields: bool) -> None:
        """Have the shim start it."""
        result, lent = await self._connection.request("exec", fds, **fields)
        self.pid = result["exec_pid"]
        self._adopt(result["fds"], lent)
        if self._terminal >= 0:
            self.stdout = os.dup(self._terminal)
            if fields["stdin"]:
                self.stdin = os.dup(self._terminal)

    def _on_event(self, event: Message) -> None:
        if event["event"] == "exec_exit" and not self._exit.done():
            self._exit.set_result(int(event["exit_code"]))

    def _on_closed(self, _closed: object) -> None:
        if not self._exit.done():
            # 128 + SIGKILL: the shim ends only when everything in the container is dead.
            self._exit.set_result(137)

    async def wait(self) -> int:
        """The exit code; 128 + n after a death by signal n."""
        return await asyncio.shield(self._exit)

    async def kill(self) -> None:
        """Kill the process and everything it has started, however often that has forked; returns when it is dead."""
        await self._connection.request("kill")


class AttachSession(_StreamSession):
    """One attached client. It ends by the end of file on `stdout` and `stderr`."""

    async def begin(self, **fields: bool) -> None:
        """Have the shim lend the streams."""
        result, lent = await self._connection.request("attach", (), **fields)
        self._adopt(result["fds"], lent)
        if self._terminal >= 0:
            self.stdin = os.dup(self._terminal)

    async def close_stdin(self) -> None:
        """The client has no more input: let the container see the end of its stdin (a terminal has none)."""
        if not self.tty:
            _close(self.stdin)
            self.stdin = -1
            await self._connection.request("close_stdin")


# --- without a connection --------------------------------------------------------------------------------------


def shim_alive(bundle: str) -> bool:
    """Whether a shim holds the lock of `bundle`. Only if not, and if the cgroup is empty, is the container dead."""
    try:
        fd = os.open(os.path.join(bundle, "shim.lock"), os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def read_exit_record(bundle: str) -> ExitRecord | None:
    """The exit record that a shim has left, None if there is none."""
    return exit_record.read(bundle)


def _payload(message: Message) -> Any:
    """A memory file with JSON too large for a datagram."""
    file = open(os.memfd_create("payload", os.MFD_CLOEXEC), "r+b", buffering=0)  # noqa: SIM115  the caller's
    file.write(json.dumps(message).encode())
    file.seek(0)
    return file


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


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
