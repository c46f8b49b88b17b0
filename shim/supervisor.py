"""The shim: one process for each container, the parent of its init, the owner of its streams, log and exit record.

The directory of a container is its OCI bundle:

    <bundle>/spec.json      the OCI configuration as the daemon composed it, without the user
    <bundle>/config.json    the same with the user resolved: what the OCI runtime reads
    <bundle>/rootfs/        where the root is mounted, in the container's mount namespace only
    <bundle>/shim.lock      locked (flock) while the shim lives: free, and the cgroup empty, means dead
    <bundle>/shim.sock      SOCK_SEQPACKET, see proto/shim_protocol.py
    <bundle>/shim.log       what the shim itself has to complain about
    <bundle>/runtime.log    what the OCI runtime said
    <bundle>/exit.json      the exit record, see shim/exit_record.py

It is forked by the fork server as the job `shim.supervisor:main`, reports once its socket listens, and leaves when there is
nothing left to supervise. Only the standard library, no asyncio and no subprocess: a test holds its memory down.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from typing import Any

from kernel import cgroups, fd_messages, signals, syscalls
from proto import shim_protocol
from proto.errors import Code, CrispError
from proto.shim_protocol import Message, Request, State
from shim import oci_runtime
from shim.container import Container
from shim.execs import Exec
from shim.loop import Loop
from shim.runner import Runner
from shim.session import Answer, Session
from shim.tracking import Tracking

MAX_ARGUMENTS = 1 << 16  # bytes
MAX_SESSIONS = 256
ACCEPT_PAUSE = 0.1  # seconds until a shim without room for a connection looks again
FORGOTTEN_AFTER = 120.0  # seconds without a session until a shim that has created nothing leaves
_UNHEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
UNHEARD = tuple(map(int, _UNHEARD))
"""Signals that somebody may send to everything called crisp. A shim leaves with its container, and never before."""


def main(args: dict[str, Any], fds: list[int], report: Any) -> None:
    """Supervise one container.

    `args`: version, id, bundle, runtime {name, path, root, systemd_cgroup, delete_is_removal, start_is_a_byte, sealed: what
    the descriptor in `fds` is a copy of}, cgroup (its path below the roots of the hierarchies), hierarchies [mode,
    controllers, unified], detach_unified, oom_score_adj or null, shim_cgroup or null.
    """
    _settle(args)
    _supervise(args, fds, report)


def spare(args: dict[str, Any], fds: list[int], report: Any) -> None:
    """Be ready to supervise a container, and wait for one at the socket `fds[0]`; end if its other end is closed.

    `args`: of those of `main` version, hierarchies, oom_score_adj, shim_cgroup. The datagram that comes has all of them.
    """
    _take_name("crisp-spare")
    _settle(args)
    channel = socket.SocketType(fileno=fds[0])
    try:
        datagram, sealed, _ = fd_messages.receive(channel, MAX_ARGUMENTS, 1)
    except ConnectionResetError:
        return
    channel.close()
    if datagram:
        _supervise(shim_protocol.decode(datagram) or {}, sealed, report)


def _settle(args: dict[str, Any]) -> None:
    """What does not depend on the container."""
    if args["version"] != shim_protocol.VERSION:
        raise CrispError(Code.FAILED_PRECONDITION, f"shim speaks version {shim_protocol.VERSION}, not {args['version']}")
    os.setsid()
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    set_oom_score(args.get("oom_score_adj"))
    for number in UNHEARD:
        # A handler and not SIG_IGN, which the OCI runtime would inherit.
        signals.set_handler(number, _unheard)
    if args.get("shim_cgroup"):
        place = _hierarchies(args).group(args["shim_cgroup"])
        try:
            place.enter(os.getpid())
        except OSError:  # it is the first one; or its maker has yet to give it CPUs
            place.create()
            place.enter(os.getpid())


def _take_name(name: str) -> None:
    cgroups.write("/proc/self/comm", name)  # ctypes would make an array type for prctl's argument


def _unheard(_number: int, _frame: Any) -> None:
    return


def _hierarchies(args: dict[str, Any]) -> cgroups.Hierarchies:
    mode, controllers, unified = args["hierarchies"]
    return cgroups.Hierarchies(cgroups.MODES[mode], controllers, unified)


def _supervise(args: dict[str, Any], fds: list[int], report: Any) -> None:
    for fd in fds:
        os.set_inheritable(fd, False)
    _take_name("crisp-shim")
    bundle = args["bundle"]
    log = os.open(f"{bundle}/shim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 2)
    os.close(log)
    lock = take_lock(bundle)
    shim = Shim(args, fds, _hierarchies(args))
    shim.listen()
    report({})
    shim.run()
    os.close(lock)


def set_oom_score(score: int | None) -> None:
    """Set our own OOM score adjustment; without CAP_SYS_RESOURCE it can't be lowered and stays as it is."""
    if score is None:
        return
    try:
        cgroups.write("/proc/self/oom_score_adj", str(score))
    except PermissionError:
        return


def take_lock(bundle: str) -> int:
    """Lock `shim.lock`; a second shim for the same container is refused."""
    fd = os.open(f"{bundle}/shim.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CrispError(Code.ALREADY_EXISTS, f"{bundle} has a shim already") from None
    return fd


class Shim:
    """The container, the sessions and the socket."""

    def __init__(self, args: dict[str, Any], fds: list[int], hierarchies: cgroups.Hierarchies) -> None:
        self._loop = Loop()
        self._id: str = args["id"]
        self._bundle: str = args["bundle"]
        self._tracking = Tracking(hierarchies, args["cgroup"], self._id)
        runner = Runner(self._loop, oci_runtime.from_args(args["runtime"], fds), self._tracking, self._bundle)
        detach = hierarchies.unified if args.get("detach_unified") else ""
        self._runner = runner
        self._container = Container(self._loop, runner, self._tracking, self._id, self._bundle, detach)
        self._container.on_exit = self._announce_exit
        self._container.on_gone = self._loop.stop
        self._sessions: list[Session] = []
        self._execs: list[Exec] = []
        self._listener = fd_messages.listener()

    def listen(self) -> None:
        """Make the socket; by the directory's descriptor, for a socket's name holds 108 bytes only."""
        try:
            os.unlink(f"{self._bundle}/shim.sock")
        except FileNotFoundError:
            pass
        directory = os.open(self._bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._listener.bind(f"/proc/self/fd/{directory}/shim.sock")
        os.close(directory)
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._loop.add(self._listener.fileno(), self._on_connection)
        self._loop.spawn(self._leave_if_forgotten())

    def run(self) -> None:
        """Serve until the container is gone."""
        self._loop.run()

    def _on_connection(self, _events: int) -> None:
        try:
            connection = fd_messages.accept(self._listener)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                # EMFILE, ENFILE, ENOMEM, ENOBUFS: who connects waits. The container must not die of it.
                self._loop.remove(self._listener.fileno())
                self._loop.spawn(self._accept_again())
            return
        if len(self._sessions) >= MAX_SESSIONS:
            connection.close()
            return
        session = Session(self._loop, connection, self._serve, self._on_session_closed)
        self._sessions.append(session)
        session.tell({"event": "hello", **self._state()})

    async def _accept_again(self) -> None:
        await self._loop.sleep(ACCEPT_PAUSE)
        self._loop.add(self._listener.fileno(), self._on_connection)

    def _on_session_closed(self, session: Session) -> None:
        self._sessions.remove(session)
        if session.exec is not None and not session.exec.ended and not session.exec.left:
            # Nobody is left who could read its output, send its input or wait for its end.
            self._loop.spawn(session.exec.kill())
        if session.holds_stdin:
            self._container.client_left_stdin()
        if session.froze:
            # Whoever froze the container cannot thaw it any more.
            self._loop.spawn(self._container.freeze(False))
        if not self._sessions:
            self._loop.spawn(self._leave_if_forgotten())

    async def _leave_if_forgotten(self) -> None:
        """A shim whose daemon died before `create` would otherwise wait for ever."""
        await self._loop.sleep(FORGOTTEN_AFTER)
        if not self._sessions and self._container.state is State.NEW:
            await self._container.kill()

    def _state(self) -> Message:
        return {"version": shim_protocol.VERSION, "id": self._id, **self._container.status()}

    def _announce_exit(self, record: Message) -> None:
        for session in list(self._sessions):
            session.tell({"event": "exit", **record})

    async def _serve(self, session: Session, request: Request, fds: list[int]) -> Answer:
        """Do what a request asks for."""
        container, fields = self._container, request.fields
        match request.op:
            case "create":
                return await container.create(request), []
            case "start":
                return await container.start(fields["log_path"]), []
            case "state":
                return self._state(), []
            case "signal":
                container.signal(fields["signal"])
            case "kill" if session.exec is not None:
                await session.exec.kill()
            case "kill":
                await container.kill()
            case "exec":
                return await self._exec(session, request, fds)
            case "leave":
                _exec_of(session).leave(fds)
            case "attach":
                return self._attach(session, request)
            case "close_stdin":
                container.close_stdin()
            case "resize":
                container.resize(fields["width"], fields["height"])
            case "reopen_log":
                container.reopen_log()
            case "update":
                await container.update(_payload(request, fds))
            case "pause":
                session.froze = True
                await container.freeze(True)
            case "resume":
                await container.freeze(False)
                session.froze = False
            case "checkpoint":
                await container.checkpoint(fields["images"], fields["work"])
        return {}, []

    async def _exec(self, session: Session, request: Request, fds: list[int]) -> Answer:
        """Start an exec and bind it to the session."""
        process_fd = _payload(request, fds)
        if session.exec is not None:
            raise CrispError(Code.FAILED_PRECONDITION, "shim: this session has an exec already")
        if self._container.state not in (State.RUNNING, State.CREATED) or not self._container.pid:
            raise CrispError(Code.FAILED_PRECONDITION, f"container {self._id} is {self._container.state.value}")
        started = Exec(self._loop, self._runner, self._tracking, self._bundle, self._id)
        session.exec = started
        self._container.execs.append(started)

        def on_exit(code: int) -> None:
            self._container.execs.remove(started)
            session.tell({"event": "exec_exit", "exit_code": code})

        try:
            streams = await started.start(request, process_fd, on_exit)
        except BaseException:
            session.exec = None
            self._container.execs.remove(started)
            raise
        return {"exec_pid": started.pid, "fds": list(streams.lent)}, list(streams.lent.values())

    def _attach(self, session: Session, request: Request) -> Answer:
        """Lend copies of the container's streams."""
        wanted = {name for name in ("stdin", "stdout", "stderr") if request.flag(name)}
        lent = self._container.attach(wanted)
        session.holds_stdin = session.holds_stdin or "stdin" in lent or "tty" in lent
        return {"fds": list(lent)}, list(lent.values())


def _exec_of(session: Session) -> Exec:
    if session.exec is None:
        raise CrispError(Code.FAILED_PRECONDITION, "shim: this session has no exec")
    return session.exec


def _payload(request: Request, fds: list[int]) -> int:
    """The one descriptor that came with a request."""
    if len(fds) != 1:
        raise CrispError(Code.INVALID_ARGUMENT, f"shim: {request.op} takes one descriptor, not {len(fds)}")
    return fds[0]
