"""Shims that wait for a container: forked beforehand, so that CreateContainer need not wait for that.

    prepare      when a pod is made, and when a spare was taken: another one is forked, up to MAX_SPARES
    take         a spare gets its container's arguments over a socket of its own, and becomes its shim
    IDLE_SECONDS without either, and they are let go: an idle daemon has none

A spare ends when the other end of its socket is closed, so that it goes with the daemon, however that goes. What is settled
before a container is known (session, cgroup, OOM score) is the same for all; a spare for which it was something else is not
taken: the configuration was read anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from proto.errors import CrispError
from proto.shim_protocol import Message

log = structlog.get_logger(__name__)

MAX_SPARES: Final = 2
IDLE_SECONDS: Final = 10.0
COMMON: Final = ("version", "hierarchies", "oom_score_adj", "shim_cgroup")
"""Of a shim's arguments, what a spare is told when it is forked."""

Fork = Callable[[bytes, list[int]], Awaitable[int]]
"""Has the fork server fork for a request with descriptors; a pidfd of the child, -1 if it has ended."""


class Spare:
    """A forked shim without a container."""

    def __init__(self, common: Message, report: socket.socket, channel: socket.socket, pidfd: int) -> None:
        self.common = common
        self.report = report
        """What it says once it has become a shim, to the end of file."""
        self.pidfd = pidfd
        self._channel = channel

    def begin(self, arguments: Message, fds: Sequence[int]) -> bool:
        """Tell it its container; False if it has ended meanwhile. The caller keeps `fds`."""
        try:
            socket.send_fds(self._channel, [json.dumps(arguments).encode()], fds)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let go of it: one that has no container ends."""
        for end in (self._channel, self.report):
            end.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    async def gone(self) -> None:
        """Wait until it has ended."""
        if self.pidfd < 0:
            return
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(self.pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self.pidfd)

    def kill(self) -> None:
        """SIGKILL it, whatever it has become."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Spares:
    """Those of one fork server."""

    def __init__(self, fork: Fork) -> None:
        self._fork = fork
        self._waiting: list[Spare] = []
        self._common: Message | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None

    def take(self, arguments: Message) -> Spare | None:
        """A spare for a shim with these arguments, None if there is none; it is the caller's."""
        self._common = {name: arguments[name] for name in COMMON}
        while self._waiting:
            spare = self._waiting.pop(0)
            if spare.common == self._common:
                return spare
            spare.close()
        return None

    def prepare(self) -> None:
        """Containers are to be expected. Nothing happens before the first one, which tells what is common to all."""
        if self._common is None:
            return
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.let_go)
        if self._task is None and len(self._waiting) < MAX_SPARES:
            self._task = asyncio.create_task(self._refill(self._common))

    async def _refill(self, common: Message) -> None:
        try:
            while len(self._waiting) < MAX_SPARES:
                self._waiting.append(await self._make(common))
                if self._idle is None:  # it took so long that nobody wants any
                    self.let_go()
                    return
        except (CrispError, OSError) as error:  # whoever needs a shim asks for one, and is told
            log.debug("no spare shim", error=str(error))
        finally:
            self._task = None

    async def _make(self, common: Message) -> Spare:
        report, its_report = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        channel, its_channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        report.setblocking(False)
        channel.setblocking(False)
        try:
            with its_report, its_channel:
                request = json.dumps({"job": "shim.supervisor:spare", "args": common}).encode()
                pidfd = await self._fork(request, [its_report.fileno(), its_channel.fileno()])
        except BaseException:
            report.close()
            channel.close()
            raise
        return Spare(common, report, channel, pidfd)

    def let_go(self) -> None:
        """End all that wait."""
        self._idle = None
        for spare in self._waiting:
            spare.close()
        self._waiting.clear()

    async def close(self) -> None:
        """The daemon ends."""
        self._common = None  # what is under way still prepares no more
        if self._idle is not None:
            self._idle.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.let_go()
