"""The container of a shim: created, started, watched, and put away.

    NEW ──create──▶ CREATED ──start──▶ RUNNING ◀──pause, resume──▶ PAUSED
     │                 └────────────────┴──── init exits ─────────────┴──▶ STOPPED ──▶ the shim leaves
     └── a create that fails, or `kill`: the shim leaves

A container that is to be restored from a checkpoint has no process while it is CREATED: its `start` makes one. Neither has
one whose process cannot be made, because its command is missing, say: its `start` fails. That is where Kubernetes expects
to hear of it; a CreateContainer that fails is tried again for ever.

Putting away, in this order: read the OOM count, kill the rest of the cgroup, copy what is left in the pipes, write the exit
record, tell, delete the container at the OCI runtime, remove the cgroups.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from proto.errors import Code, CrispError
from proto.shim_protocol import Message, Request, State
from shim import cri_log, exit_record, oci_runtime, preparation, process
from shim.execs import Exec, read_pid
from shim.exit_record import ExitRecord
from shim.loop import Event, Loop
from shim.oom import OomWatch
from shim.runner import Runner
from shim.stdio import Stdio
from shim.tracking import Tracking, opened_procs, until

RESERVE = 8  # descriptors that are kept for killing a container and putting it away
DELETE_TIME = 5.0  # seconds that the runtime may take to delete the container before a kill ends it with its hooks
KILL_TIME = 30.0  # seconds until a kill that does not succeed is reported
RECORD_TIME = 10.0  # seconds that the exit record waits for the rest of the cgroup to die
CLIENT_TIME = 12.0  # seconds for attached clients to take the end of the output
PUT_AWAY_TIME = 600.0  # seconds until the shim gives up on a cgroup that stays busy


class Container:
    """One container. Methods raise CrispError, or OSError where the kernel refuses."""

    def __init__(
        self, loop: Loop, runner: Runner, tracking: Tracking, identity: str, bundle: str, detach_unified: str
    ) -> None:
        self.state = State.NEW
        self.execs: list[Exec] = []
        self.on_exit: Callable[[Message], None] = lambda _: None
        """Called with the exit record."""
        self.on_gone: Callable[[], None] = lambda: None
        """Called when nothing is left."""
        self._loop = loop
        self._runner = runner
        self._tracking = tracking
        self._id = identity
        self._bundle = bundle
        self._detach_unified = detach_unified
        self._command = self._directory = ""  # what it runs, and where
        self._removable = False  # once it has ended, it can be deleted without the runtime
        self._releasable = False  # it can be started without the runtime
        self._pid = 0
        self._pidfd = -1
        self._started_at = 0
        self._reason = ""
        self._stdin_once = False
        self._stdio: Stdio | None = None
        self._oom = OomWatch(loop, tracking.group)
        self._record: ExitRecord | None = None
        self._reserve = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(RESERVE)]
        self._busy: Event[None] | None = None  # a create or start under way
        self._freezer: Event[None] | None = None  # a pause, resume or checkpoint under way
        self._to_restore: Request | None = None  # the create of a container that has no process yet
        self._deleting = False
        self._stillborn: CrispError | None = None  # why it will never have one
        self._ending = False  # it is put away, and never had a process
        self._user: Message = {}  # whom the process runs as
        self._message = ""  # the reason of the exit record in words
        self._clients_matter = True
        """Whether the shim waits for attached clients to take the end of the output: not once somebody kills."""

    def status(self) -> Message:
        """The fields of `hello` and `state`."""
        log = self._stdio.log if self._stdio is not None else None
        return {
            "state": self.state.value,
            "pid": self._pid,
            "started_at": self._started_at,
            "tty": self._stdio is not None and self._stdio.tty,
            "lost_log_bytes": log.lost if log is not None else 0,
            "exit": self._record._asdict() if self._record is not None else None,
        }

    @property
    def pid(self) -> int:
        """Of the container's init, 0 before it was created."""
        return self._pid

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise CrispError(Code.FAILED_PRECONDITION, f"container {self._id} is {self.state.value}")

    def _streams(self) -> Stdio:
        if self._stdio is None:
            raise CrispError(Code.FAILED_PRECONDITION, f"container {self._id} is {self.state.value}")
        return self._stdio

    # --- create --------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Message:
        """Mount the root, resolve the user, and have the runtime create the container."""
        self._require(State.NEW)
        if self._busy is not None:
            raise CrispError(Code.FAILED_PRECONDITION, f"container {self._id} is being created")
        busy: Event[None] = Event()
        self._busy = busy
        self._loop.claim()
        try:
            self._stdin_once = request.flag("stdin_once")
            self._stdio = self._new_stdio(request)
            if request.fields.get("restore"):
                user = await self._rehearse(request)
                self._to_restore = request
            else:
                user = await self._launch_or_note(request)
        except BaseException:
            await self._undo_create()
            raise
        finally:
            self._busy = None
            busy.set(None)
        self.state = State.CREATED
        if self._pid:
            self._loop.spawn(self._watch(self._loop.child(self._pid)))
        self._loop.unclaim()
        return {"pid": self._pid, **user}

    async def _launch_or_note(self, request: Request) -> Message:
        """Launch the container; what is wrong with its process is kept for `start`."""
        try:
            return await self._launch(request, "create")
        except oci_runtime.ProcessError as error:
            self._stillborn = error
            await until(self._loop, self._tracking.kill, RECORD_TIME)
            await self._delete()
            return self._user

    def _new_stdio(self, request: Request) -> Stdio:
        max_line = request.fields.get("max_line") or cri_log.MAX_LINE
        return Stdio(self._loop, self._bundle, request.flag("tty"), request.flag("stdin"), max_line)

    async def _rehearse(self, request: Request) -> Message:
        """Prepare the root as a restore will, to tell now what is wrong with it; the mounts go with the child."""
        result = preparation.new_result()

        def prepare() -> None:
            preparation.prepare(self._bundle, request.fields, self._detach_unified, result)
            raise SystemExit

        try:
            with opened_procs(self._tracking.for_init()) as procs_fd:
                pid = process.spawn([], self._streams().child_fds, procs_fd, prepare)
            await self._loop.child(pid)
            prepared = preparation.read_result(result)
        finally:
            os.close(result)
        if prepared is None:
            raise CrispError(Code.INTERNAL, f"container {self._id}: its root was not prepared")
        return prepared.user

    async def _launch(self, request: Request, verb: str, *arguments: str) -> Message:
        """Have the runtime make the container's init, by `create` or by `restore`; the caller claims its pid."""
        stdio = self._streams()
        pid_file = os.path.join(self._bundle, "pid")
        options = ["--bundle", self._bundle, "--pid-file", pid_file, *arguments]
        if stdio.console is not None:
            options += ["--console-socket", stdio.console.path]
        result = preparation.new_result()

        def prepare() -> None:
            preparation.prepare(self._bundle, request.fields, self._detach_unified, result)

        try:
            with opened_procs(self._tracking.for_init()) as procs_fd:
                call = self._runner.begin(
                    verb, *options, self._id, stdio=stdio.child_fds, procs_fd=procs_fd, prepare=prepare
                )
            await call.ended
            prepared = preparation.read_result(result)
        finally:
            os.close(result)
        if prepared is not None:
            self._command, self._directory, self._user = prepared.command, prepared.directory, prepared.user
            self._removable = self._runner.runtime.delete_is_removal and not prepared.own_end
            self._releasable = self._runner.runtime.start_is_a_byte and not prepared.own_start
        await call.finish(self._command, self._directory)
        if prepared is None:
            raise CrispError(Code.INTERNAL, f"container {self._id}: its root was not prepared")
        stdio.created()
        self._pid = read_pid(pid_file)
        self._pidfd = os.pidfd_open(self._pid)
        self._oom.begin()
        return prepared.user

    async def _undo_create(self) -> None:
        """Leave nothing of a create that failed, and leave."""
        self._loop.unclaim()
        if self._stdio is not None:
            self._stdio.finish()
        await until(self._loop, self._tracking.kill, RECORD_TIME)
        await self._delete()
        self._loop.spawn(self._leave())

    # --- start ---------------------------------------------------------------------------------------------------

    async def start(self, log_path: str) -> Message:
        """Open the log and let the container's process run; a failure ends the container with code 128."""
        self._require(State.CREATED)
        if self._busy is not None or self._ending:
            raise CrispError(Code.FAILED_PRECONDITION, f"container {self._id} is being started or ended")
        stdio = self._streams()
        busy: Event[None] = Event()
        self._busy = busy
        # Taken before the process can run, so that it never ends before it has started.
        started_at = time.time_ns()
        try:
            stdio.start(log_path)
            if self._to_restore is not None:
                await self._restore(self._to_restore)
            elif self._stillborn is not None:
                raise self._stillborn
            elif not (self._releasable and self._runner.release(self._id)):
                await self._runner.begin("start", self._id, prepare=_without_sigpipe).finish(self._command, self._directory)
        except (CrispError, OSError) as error:  # no descriptor, process or memory to start it with
            message = error.message if isinstance(error, CrispError) else f"cannot start the container: {error}"
            self._reason, self._message = "StartError", message[: exit_record.MAX_MESSAGE]
            if self._pid:
                self._use_reserve()
                self._tracking.kill()
            else:
                self._end_without_process(process.EXEC_FAILED, 0)
            raise
        finally:
            self._busy = None
            if not self._reason:
                self._started_at = started_at
                self.state = State.RUNNING
            busy.set(None)
        return {"started_at": started_at}

    async def _restore(self, request: Request) -> None:
        """Have the runtime make the process out of a checkpoint's images."""
        self._to_restore = None
        places = request.fields["restore"]
        options = ["--detach", "--file-locks", "--image-path", places["images"], "--work-path", places["work"]]
        self._loop.claim()
        try:
            await self._launch(request, "restore", *options)
        except OSError as error:
            raise CrispError(Code.INTERNAL, f"container {self._id} cannot be restored: {error}") from error
        else:
            self._loop.spawn(self._watch(self._loop.child(self._pid)))
        finally:
            self._loop.unclaim()

    # --- while it runs -------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Signal the container's init; nothing happens if it has exited."""
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return

    async def kill(self) -> None:
        """Kill everything in the container and see that it is gone."""
        if self.state is State.NEW and self._busy is None:
            self._loop.spawn(self._leave())
            return
        self._clients_matter = False
        self._use_reserve()
        # The delete that follows the end is not to be killed, unless it was under way before and hangs.
        hangs = self._deleting and not await until(self._loop, lambda: not self._deleting, DELETE_TIME)

        def dead() -> bool:
            # A create or start under way ends with it: what that would make after the kill is killed too.
            if not self._tracking.kill(spare_calls=self._deleting and not hangs) or self._busy is not None:
                return False
            if self.state is State.CREATED and not self._pid:
                self._end_without_process(128 + signal.SIGKILL, signal.SIGKILL)
            return True

        if not await until(self._loop, dead, KILL_TIME):
            pids = sorted(self._tracking.group.procs())
            raise CrispError(Code.DEADLINE_EXCEEDED, f"processes {pids} of container {self._id} do not die")

    def attach(self, wanted: set[str]) -> dict[str, int]:
        """Descriptors for an attached client, by name."""
        stdio = self._streams()
        self._require(State.CREATED, State.RUNNING, State.PAUSED)
        lent: dict[str, int] = {}
        try:
            if "stdin" in wanted and (fd := stdio.stdin_fd()) >= 0:
                lent["tty" if stdio.tty else "stdin"] = fd
            for name in ("stdout", "stderr"):
                if name in wanted and (fd := stdio.tap(name)) >= 0:
                    lent[name] = fd
        except OSError:  # no more descriptors; a copy of the output that nobody reads would hold the container up
            for fd in lent.values():
                os.close(fd)
            raise
        return lent

    def client_left_stdin(self) -> None:
        """A session that was attached to stdin has ended: with stdin_once, stdin ends with it."""
        if self._stdin_once:
            self.close_stdin()

    def close_stdin(self) -> None:
        """Let the container see the end of its stdin."""
        if self._stdio is not None:
            self._stdio.close_stdin()

    def resize(self, width: int, height: int) -> None:
        """Set the size of the container's terminal, in characters."""
        self._streams().resize(width, height)

    def reopen_log(self) -> None:
        """Go on in a fresh log file."""
        self._require(State.RUNNING, State.PAUSED)
        log = self._streams().log
        assert log is not None
        log.reopen()

    async def update(self, resources_fd: int) -> None:
        """Change the limits to the OCI resources in the JSON at `resources_fd`."""
        self._require(State.CREATED, State.RUNNING, State.PAUSED)
        if self._stillborn is not None:
            return  # nothing is there to be limited, and it was put away
        await self._runner.call("update", "--resources", f"/proc/{os.getpid()}/fd/{resources_fd}", self._id)

    async def freeze(self, frozen: bool) -> None:
        """Freeze or thaw the container; to thaw one that is not frozen is no error."""
        async with self._freezing():
            if frozen:
                self._require(State.RUNNING)
            elif self.state is not State.PAUSED:
                return
            await self._runner.call("pause" if frozen else "resume", self._id)
            if self.state is not State.STOPPED:
                self.state = State.PAUSED if frozen else State.RUNNING

    async def checkpoint(self, images: str, work: str) -> None:
        """Have CRIU write the frozen container's processes into the directory `images`; its log goes to `work`."""
        async with self._freezing():
            self._require(State.PAUSED)
            places = ("--image-path", images, "--work-path", work)
            await self._runner.call("checkpoint", "--leave-running", "--file-locks", *places, self._id)

    @asynccontextmanager
    async def _freezing(self) -> AsyncIterator[None]:
        """One of these at a time: nobody thaws what CRIU is writing."""
        while self._freezer is not None:
            await self._freezer
        mine: Event[None] = Event()
        self._freezer = mine
        try:
            yield
        finally:
            self._freezer = None
            mine.set(None)

    # --- the end -------------------------------------------------------------------------------------------------

    async def _watch(self, ended: Event[int]) -> None:
        """Wait for the container's init and put the container away."""
        await self._end(*process.exit_code(await ended))

    def _end_without_process(self, code: int, number: int) -> None:
        """Put a container away that has no init whose end would be noticed."""
        if not self._ending:
            self._ending = True
            self._loop.spawn(self._end(code, number))

    async def _end(self, code: int, number: int) -> None:
        """Put the container away: its init has exited, or there never was one."""
        finished_at = time.time_ns()
        self._use_reserve()
        if self._busy is not None:
            await self._busy
        oom_killed = self._oom_killed()
        empty = await until(self._loop, self._tracking.kill, RECORD_TIME)
        stdio = self._streams()
        stdio.finish()
        if self._reason:
            code, number = 128, 0
        elif not empty:
            self._reason = "processes of the container do not die"
        self._record = ExitRecord(code, number, oom_killed, self._started_at, finished_at, self._reason, self._message)
        try:
            exit_record.write(self._bundle, self._record)
        except OSError:  # the disk is full, or someone has removed the bundle: those who listen are told all the same
            sys.excepthook(*sys.exc_info())
        self.state = State.STOPPED
        self.on_exit(self._record._asdict())
        await until(self._loop, lambda: not self.execs, RECORD_TIME)
        # A runtime that is asked takes as long as a whole `start`, to find out what is known here.
        if not (self._removable and empty and self._runner.forget(self._id)):
            await self._delete()
        await until(self._loop, lambda: not (self._clients_matter and stdio.clients_behind), CLIENT_TIME)
        await self._leave()

    def _oom_killed(self) -> bool:
        try:
            return self._oom.end()
        except OSError:  # no descriptor or memory to look with: what was seen before counts
            return self._oom.killed

    def _use_reserve(self) -> None:
        """Have descriptors for the end, whatever has used up the others."""
        while self._reserve:
            os.close(self._reserve.pop())

    async def _delete(self) -> None:
        """Have the runtime forget the container; it may never have known it."""
        self._deleting = True
        try:
            await self._runner.begin("delete", "--force", self._id, prepare=_without_sigpipe).finish()
        except (CrispError, OSError):
            return  # said in runtime.log; the cgroups are removed below in any case
        finally:
            self._deleting = False

    async def _leave(self) -> None:
        """Remove the cgroups and let the shim end."""
        await until(self._loop, lambda: self._tracking.kill() and self._tracking.remove(), PUT_AWAY_TIME)
        self.on_gone()


def _without_sigpipe() -> None:
    """crun 1.8 dies of it where a poststart or poststop hook ends without having read its input.

    Only hooks inherit that: the container's process was made before.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
