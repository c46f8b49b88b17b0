"""A process and a client, joined by their streams until one of them is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final

from runtime.streaming.connection import ConnectionLostError, unless_lost
from runtime.streaming.relay import Output, copy_input
from runtime.streaming.remote_command import Streams, TerminalSizes
from runtime.streaming.seam import ProcessIO
from runtime.streaming.session import Session, Stream, StreamResetError

CLOSE_SECONDS: Final = 30.0
"""How long the end of an exec'd process tree is waited for."""


class ProcessSession:
    """One exec or attach."""

    def __init__(self, io: ProcessIO, streams: Streams, sizes: TerminalSizes, *, is_attach: bool) -> None:
        self._io = io
        self._sizes = sizes
        self._streams = streams
        self._is_attach = is_attach
        self._stdin_is_terminal = io.stdin is not None and (io.stdin == io.stdout or os.isatty(io.stdin))
        self._open = {fd for fd in (io.stdin, io.stdout, io.stderr) if fd is not None}
        for fd in self._open:
            os.set_blocking(fd, False)

    async def run(self, session: Session) -> int:
        """Copy until the process has ended and its output is sent; returns its exit code (0 for an attach).

        Raises ConnectionLostError when the client leaves before that. Either way the session's hold on the
        process is given up on return: an exec'd one is dead.
        """
        try:
            return await unless_lost(session.lost, self._run())
        finally:
            await self._close()

    async def _run(self) -> int:
        pairs = ((self._io.stdout, self._streams.stdout), (self._io.stderr, self._streams.stderr))
        outputs = [Output(fd, stream) for fd, stream in pairs if fd is not None and stream is not None]
        stdin = asyncio.create_task(self._copy_stdin())
        resize = asyncio.create_task(self._sizes.follow(self._io.resize))
        waiter = asyncio.create_task(self._io.wait())
        silence = asyncio.create_task(_all_ended(outputs))
        try:
            if not self._is_attach:
                code = await waiter
            else:
                # A container that has ended has closed its output, though not the other way round: that is
                # the sign for attaches. One for input alone ends with the client's input.
                await asyncio.wait((waiter, silence if outputs else stdin), return_when=asyncio.FIRST_COMPLETED)
                code = 0
            for output in outputs:
                await output.drain()
            return code
        finally:
            tasks = (stdin, resize, waiter, silence)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *(output.stop() for output in outputs), return_exceptions=True)

    async def _copy_stdin(self) -> None:
        """Take the client's input, and drop what the process has no stdin for."""
        fd, stream = self._io.stdin, self._streams.stdin
        if stream is None:
            return
        try:
            if fd is None:
                await _discard(stream)
                return
            await copy_input(stream, fd)
        except (ConnectionLostError, StreamResetError):
            return
        if not self._stdin_is_terminal:
            self._close_fd(fd)
        await self._io.close_stdin()

    def _close_fd(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            os.close(fd)

    async def _close(self) -> None:
        """Let go of everything, also when the session itself is being cancelled."""
        for fd in list(self._open):
            self._close_fd(fd)
        closing = asyncio.ensure_future(self._io.close())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.shield(closing)


async def _all_ended(outputs: list[Output]) -> None:
    for output in outputs:
        await output.ended()


async def _discard(stream: Stream) -> None:
    while await stream.read():
        pass
