"""A container's standard streams: made before it, copied into the CRI log and to attached clients while it runs.

container ──pipe or pty──▶ Pump ──▶ Formatter ──▶ LogFile
                             └────▶ Tap of each attached client
"""

from __future__ import annotations

import os
import time

from shim import cri_log, pipes
from shim.attach import Tap
from shim.logs import LogFile
from shim.loop import Event, Loop

DRAIN_TIME = 2.0  # seconds; for output of a container that is dead already


class Pump:
    """Copies one stream until its end."""

    def __init__(self, loop: Loop, fd: int, formatter: cri_log.Formatter) -> None:
        self.taps: list[Tap] = []
        self.ended: Event[None] = Event()
        self._loop = loop
        self._fd = fd
        self._formatter = formatter
        self._log: LogFile | None = None
        os.set_blocking(fd, False)

    def start(self, log: LogFile) -> None:
        """Begin to copy."""
        self._log = log
        self._loop.add(self._fd, self._on_readable)

    def _on_readable(self, _events: int) -> None:
        if self._copy() and any(tap.behind for tap in self.taps):
            self._loop.remove(self._fd)
            self._loop.spawn(self._wait_for_taps())

    def _copy(self) -> bool:
        """One read and its writes; False if there is nothing to read."""
        data = pipes.read_some(self._fd)
        if data is None:
            return False
        if not data:
            self.close()
            return False
        assert self._log is not None
        self._log.write(self._formatter.feed(data, time.time_ns()))
        if self.taps:
            for tap in self.taps:
                tap.offer(data)
            self.taps = [tap for tap in self.taps if not tap.closed]
        return True

    async def _wait_for_taps(self) -> None:
        for tap in list(self.taps):
            await tap.catch_up(self._loop)
        if not self.ended.done:
            self.taps = [tap for tap in self.taps if not tap.closed]
            self._loop.add(self._fd, self._on_readable)

    def drain(self) -> None:
        """Copy what is there, without waiting for more: the container is dead, whoever else holds the pipe isn't it."""
        deadline = time.monotonic() + DRAIN_TIME
        if self._log is not None:
            while not self.ended.done and time.monotonic() < deadline and self._copy():
                continue
        self.close()

    def close(self) -> None:
        """End the copy: write the last line, and let each client take what is left for it."""
        if self.ended.done:
            return
        if self._log is not None:
            self._log.write(self._formatter.finish(time.time_ns()))
        self._loop.remove(self._fd)
        os.close(self._fd)
        self.ended.set(None)
        for tap in list(self.taps):  # a tap that has everything leaves the list at once
            self._loop.spawn(self._finish_tap(tap))

    async def _finish_tap(self, tap: Tap) -> None:
        await tap.catch_up(self._loop)
        tap.close()
        self.taps.remove(tap)


class Stdio:
    """The streams of one container."""

    def __init__(self, loop: Loop, bundle: str, tty: bool, stdin: bool, max_line: int) -> None:
        self.tty = tty
        self.log: LogFile | None = None
        self._loop = loop
        self._clock = cri_log.Clock()
        self._max_line = max_line
        self._stdin = -1
        self._slave = -1
        self._pumps: dict[str, Pump] = {}
        self._lent: list[int] = []
        self.console = pipes.ConsoleSocket(bundle, "console.sock") if tty else None
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._lent.append(null)
        self.child_fds = (null, null, null)
        """What the OCI runtime gets as descriptors 0 to 2, until `release_child_ends`."""
        if not tty:
            self._make_pipes(null, stdin)

    def _make_pipes(self, null: int, stdin: bool) -> None:
        out_read, out_write = pipes.make_pipe(mode=pipes.OUTPUT)
        err_read, err_write = pipes.make_pipe(mode=pipes.OUTPUT)
        self._lent += [out_write, err_write]
        in_read = null
        if stdin:
            in_read, self._stdin = pipes.make_pipe(1 << 16, pipes.INPUT)
            self._lent.append(in_read)
            os.set_blocking(self._stdin, False)
        self.child_fds = (in_read, out_write, err_write)
        self._add_pump("stdout", out_read)
        self._add_pump("stderr", err_read)

    def _add_pump(self, name: str, fd: int) -> None:
        self._pumps[name] = Pump(self._loop, fd, cri_log.Formatter(name.encode(), self._clock, self._max_line))

    def created(self) -> None:
        """The runtime has made the container's process: take the terminal, let go of the container's ends."""
        if self.console is not None:
            self._stdin = self.console.receive()
            # Who reads a terminal that nobody has open gets an error; the container may open it again.
            self._slave = pipes.open_slave(self._stdin)
            self._add_pump("stdout", os.dup(self._stdin))
            if self.log is not None:  # a restored process runs at once
                self._pumps["stdout"].start(self.log)
        self.release_child_ends()

    def release_child_ends(self) -> None:
        """Close what only the container should hold, or its end would never be seen."""
        for fd in self._lent:
            os.close(fd)
        self._lent = []
        if self.console is not None:
            self.console.close()
            self.console = None

    def start(self, log_path: str) -> None:
        """Open the log and begin to copy."""
        self.log = LogFile(log_path)
        for pump in self._pumps.values():
            pump.start(self.log)

    def stdin_fd(self) -> int:
        """A copy of the writing end of the container's stdin, or of its terminal; -1 if it has none (any more)."""
        return os.dup(self._stdin) if self._stdin >= 0 else -1

    def close_stdin(self) -> None:
        """Let go of the container's stdin: it sees the end once attached clients have closed their copies too."""
        if self._stdin >= 0 and not self.tty:
            os.close(self._stdin)
            self._stdin = -1

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; nothing happens without one."""
        if self.tty and self._stdin >= 0:
            pipes.resize(self._stdin, width, height)

    def tap(self, name: str) -> int:
        """The read end of a new client's copy of a stream; -1 if there is no such stream (any more)."""
        pump = self._pumps.get(name)
        if pump is None or pump.ended.done:
            return -1
        tap = Tap(self._loop)
        pump.taps[:] = [known for known in pump.taps if not known.closed]
        pump.taps.append(tap)
        return tap.read_fd

    @property
    def clients_behind(self) -> bool:
        """Whether an attached client has yet to take the end of the output."""
        return any(pump.taps for pump in self._pumps.values())

    def finish(self) -> None:
        """The container is dead: copy what it left in its pipes, and close everything."""
        for pump in self._pumps.values():
            pump.drain()
        for fd in (self._stdin, self._slave):
            if fd >= 0:
                os.close(fd)
        self._stdin = self._slave = -1
        self.release_child_ends()
        if self.log is not None:
            self.log.close()
