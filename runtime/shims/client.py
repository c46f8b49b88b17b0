"""The daemon's side of the shims: asyncio over SOCK_SEQPACKET, descriptors as plain ints.

    shim = await ShimClient.connect(bundle)
    created = await shim.create(...)

Failures are CrispErrors. A shim that has gone away is UNAVAILABLE: what became of its container says
`read_exit_record(bundle)`, once `shim_alive(bundle)` is false.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import io
import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from proto import shim_protocol
from proto.errors import Code, CrispError
from proto.shim_protocol import Message
from runtime.shims.connection import Connection, close_all
from shim import exit_record, pipes
from shim.exit_record import ExitRecord


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
        self._connection = Connection.open(bundle, self._on_event)
        self._connection.closed.add_done_callback(self._on_closed)

    @classmethod
    async def connect(cls, bundle: str, timeout: float = 5.0) -> ShimClient:
        """Connect and read the shim's hello.

        Raises UNAVAILABLE if none answers, FAILED_PRECONDITION if it speaks a version that this daemon does not.
        """
        client = cls(bundle)
        try:
            async with asyncio.timeout(timeout):
                await client._greeted
        except TimeoutError:
            client.close()
            raise CrispError(Code.UNAVAILABLE, f"the shim in {bundle} does not answer") from None
        try:
            client._connection.version = shim_protocol.check_version(client.hello.get("version"))
        except CrispError as error:
            client.close()
            raise CrispError(error.code, f"container {os.path.basename(bundle)}: {error.message}") from None
        return client

    @property
    def version(self) -> int:
        """Of the protocol that the shim speaks."""
        return self._connection.version

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

    @property
    def alive(self) -> bool:
        """Whether the session is open: the shim has not left."""
        return not self._connection.closed.done()

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
        volumes: Sequence[Message] = (),
        max_line: int = 0,
        stdin: bool = False,
        stdin_once: bool = False,
        tty: bool = False,
        restore: Message | None = None,
    ) -> Created:
        """Mount, resolve the user, `create`. `<bundle>/spec.json` has been written before.

        `restore` {"images": DIR, "work": DIR} leaves it to `start` to make the process, out of a checkpoint.
        """
        fields: Message = {
            "rootfs": rootfs,
            "user": user,
            "mkdirs": list(mkdirs),
            "volumes": list(volumes),
            "max_line": max_line,
            "stdin": stdin,
            "stdin_once": stdin_once,
            "tty": tty,
            "restore": restore or {},
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
        """Kill everything in the container; or, of a shim that has created nothing yet, the shim.

        A shim that has left has seen its container's cgroup empty, so there is nothing to kill.
        """
        try:
            await self._connection.request("kill")
        except CrispError as error:
            if error.code is not Code.UNAVAILABLE or shim_alive(self.bundle):
                raise

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
        """Freeze the container, until `resume` or the end of this session."""
        await self._connection.request("pause")

    async def resume(self) -> None:
        """Thaw the container; nothing happens to one that is not frozen."""
        await self._connection.request("resume")

    async def checkpoint(self, images: str, work: str) -> None:
        """Have CRIU write the frozen container's processes into the directory `images`; its log goes to `work`."""
        await self._connection.request("checkpoint", images=images, work=work)

    def require(self, op: str) -> None:
        """Raise FAILED_PRECONDITION if the shim is too old for an operation."""
        shim_protocol.request(op, 0, {}, self.version)

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
        session = ExecSession(self.bundle, self.version)
        try:
            with _payload(process) as file:
                await session.begin([file.fileno()], tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)
        except BaseException:
            session.close()
            raise
        return session

    async def attach(self, *, stdin: bool = False, stdout: bool = True, stderr: bool = True) -> AttachSession:
        """Attach to the container's streams, on a session of its own."""
        session = AttachSession(self.bundle, self.version)
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

    def __init__(self, bundle: str, version: int) -> None:
        self.stdin = -1
        self.stdout = -1
        self.stderr = -1
        self.tty = False
        self._terminal = -1
        self._connection = Connection.open(bundle, self._on_event)
        self._connection.version = version

    def _on_event(self, event: Message) -> None:
        """Events of the container are the control session's business."""

    def _adopt(self, names: list[str], fds: list[int]) -> None:
        """Take over the descriptors that were sent. OSError if this process has no room for all of them."""
        if len(fds) < len(names):  # the kernel drops what does not fit, and closes it
            close_all(*fds)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
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
        close_all(self.stdin, self.stdout, self.stderr, self._terminal)
        self.stdin = self.stdout = self.stderr = self._terminal = -1
        self._connection.close()


class ExecSession(_StreamSession):
    """One exec."""

    def __init__(self, bundle: str, version: int) -> None:
        self.pid = 0
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        super().__init__(bundle, version)
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

    async def leave(self) -> None:
        """Let it go on when this session ends; what it writes is dropped. FAILED_PRECONDITION from an older shim."""
        await self._connection.request("leave", [self._terminal] if self.tty else [])

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
            close_all(self.stdin)
            self.stdin = -1
            await self._connection.request("close_stdin")


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


def kill_shim(bundle: str) -> None:
    """SIGKILL the shim that holds the lock of `bundle`, if there is one: for a shim that hangs. Blocks, for one file.

    /proc/locks may name who took the lock and has ended, and whose pid is another's by now: so the process is held by a
    pidfd, and must have the lock's file open.
    """
    for pid in _lock_holders(bundle):
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # it has ended, or is out of sight in another PID namespace
            continue
        try:
            if pid in _lock_holders(bundle) and _has_lock_open(pid, bundle):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            continue
        finally:
            os.close(pidfd)


def _lock_holders(bundle: str) -> list[int]:
    """Who is named for the lock, in /proc/locks."""
    try:
        lock = os.stat(os.path.join(bundle, "shim.lock"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    held = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    with open("/proc/locks", encoding="ascii") as file:
        lines = [line.replace("->", "").split() for line in file]
    return [int(pid) for _, kind, _, _, pid, place, *_ in lines if (kind, place) == ("FLOCK", held) and int(pid) > 0]


def _has_lock_open(pid: int, bundle: str) -> bool:
    """Whether one of its descriptors is the lock's file."""
    lock = os.stat(os.path.join(bundle, "shim.lock"))
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for number in numbers:
        with suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), lock):
                return True
    return False


def read_exit_record(bundle: str) -> ExitRecord | None:
    """The exit record that a shim has left, None if there is none."""
    return exit_record.read(bundle)


def _payload(message: Message) -> io.FileIO:
    """A memory file with JSON too large for a datagram."""
    file = io.FileIO(os.memfd_create("payload", os.MFD_CLOEXEC), "r+")
    file.write(json.dumps(message).encode())
    file.seek(0)
    return file
