"""The shim's event loop: epoll, timers, child exits, and coroutines that wait for them.

    async def stop(loop):
        await loop.sleep(0.5)
        status = await loop.child(pid)

A coroutine runs until it awaits an `Event` that has not happened; `Event.set` resumes it at once. One thread, no
cancellation: a coroutine that must give up waits with a time-out. It does what asyncio would, in a twentieth of its memory.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from kernel import signals

T = TypeVar("T")

_SIGCHLD = int(signal.SIGCHLD)

PAUSE_AFTER_DEFECT = 0.1  # seconds; the descriptor is as ready as before, and the log is not to fill


MAX_COMPLAINTS = 1 << 18  # bytes of shim.log, after which it is begun anew


def complain() -> None:
    """Write the present exception to stderr, which is a file in memory (/run) and must not grow for ever."""
    try:
        if os.fstat(2).st_size > MAX_COMPLAINTS:
            os.ftruncate(2, 0)
    except OSError:  # it is no file
        pass
    sys.excepthook(*sys.exc_info())


class Event(Generic[T]):
    """Something that happens once and has a value; any number of coroutines may await it, before or after."""

    __slots__ = ("_tasks", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: Any = None
        self._tasks: list[Coroutine[Any, Any, Any]] = []

    def set(self, value: T) -> None:
        """Let it happen; the second time changes nothing."""
        if self.done:
            return
        self.done = True
        self._value = value
        waiting, self._tasks = self._tasks, []
        for task in waiting:
            _step(task)

    def __await__(self) -> Generator[Event[T], None, T]:
        if not self.done:
            yield self
        value: T = self._value
        return value

    def resume_with(self, task: Coroutine[Any, Any, Any]) -> None:
        """Run `task` on once this has happened."""
        self._tasks.append(task)


def _step(task: Coroutine[Any, Any, Any]) -> None:
    """Run `task` to its next wait."""
    try:
        event: Event[Any] = task.send(None)
    except StopIteration:
        return
    except Exception:
        # A defect in one session must not take the container's supervisor away.
        complain()
        return
    event.resume_with(task)


class Loop:
    """epoll, a heap of timers and the reaper of children."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Event[bool]]] = []
        self._timer_count = 0
        self._children: dict[int, Event[int]] = {}
        self._unclaimed: dict[int, int] = {}
        self._claimants = 0
        self._running = True
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake = wake_read
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signals.set_handler(_SIGCHLD, lambda *_: None)
        self.add(wake_read, lambda _: self._reap())

    # --- descriptors ---------------------------------------------------------------------------------------------

    def add(self, fd: int, handler: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Call `handler(events)` whenever `fd` is ready, until `remove`."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def remove(self, fd: int) -> None:
        """Stop watching `fd`; do it before closing it. Nothing happens if it isn't watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # --- time ----------------------------------------------------------------------------------------------------

    def timer(self, seconds: float) -> Event[bool]:
        """An event that is False after `seconds`, if nothing has set it before."""
        event: Event[bool] = Event()
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timer_count, event))
        return event

    async def sleep(self, seconds: float) -> None:
        """Let others run for `seconds`."""
        await self.timer(seconds)

    # --- children ------------------------------------------------------------------------------------------------

    def child(self, pid: int) -> Event[int]:
        """The wait status (`os.waitpid`) of a child, once it has exited."""
        event = self._children.setdefault(pid, Event())
        if pid in self._unclaimed:
            self._children.pop(pid)
            event.set(self._unclaimed.pop(pid))
        return event

    def claim(self) -> None:
        """Remember the status of unknown children until `unclaim`: a pid yet to be read may be among them."""
        self._claimants += 1

    def unclaim(self) -> None:
        """The pid is known, or will never be."""
        self._claimants -= 1
        if self._claimants == 0:
            self._unclaimed.clear()

    def _reap(self) -> None:
        """Reap every child that has exited; orphans of the container, being nobody's, just go."""
        try:
            os.read(self._wake, 512)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            event = self._children.pop(pid, None)
            if event is not None:
                event.set(status)
            elif self._claimants:
                self._unclaimed[pid] = status

    # --- running -------------------------------------------------------------------------------------------------

    @staticmethod
    def spawn(task: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine to its first wait, and on from there as its events happen."""
        _step(task)

    def stop(self) -> None:
        """Leave `run` after the present round."""
        self._running = False

    @staticmethod
    def _handle(handler: Callable[[int], None], events: int) -> None:
        """What goes wrong with one descriptor must not take the container's supervisor away."""
        try:
            handler(events)
        except Exception:
            complain()
            time.sleep(PAUSE_AFTER_DEFECT)

    def run(self) -> None:
        """Serve until `stop`."""
        while self._running:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1.0
            for fd, events in self._epoll.poll(timeout, 32):
                handler = self._handlers.get(fd)
                if handler is not None:
                    self._handle(handler, events)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2].set(False)
