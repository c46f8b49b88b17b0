"""Attached clients: each gets a copy of the container's output through a pipe of its own.

A client that does not read holds the container's output back, as a terminal would, but for at most `PATIENCE` seconds:
then it is dropped and sees the end of its stream. The log never waits for a client.
"""

from __future__ import annotations

import errno
import os
import select

from shim.loop import Event, Loop
from shim.pipes import make_pipe

PATIENCE = 10.0  # seconds


class Tap:
    """The writing end of one client's copy of one stream."""

    def __init__(self, loop: Loop) -> None:
        self.read_fd, self._fd = make_pipe()
        os.set_blocking(self._fd, False)
        self._loop = loop
        self._pending = b""
        self._waiting: Event[bool] | None = None
        # No event is asked for, but EPOLLERR is always told: the client has gone. A silent container would never notice.
        loop.add(self._fd, self._on_client_gone, 0)

    @property
    def closed(self) -> bool:
        """Whether the client is gone or was dropped."""
        return self._fd < 0

    @property
    def behind(self) -> bool:
        """Whether the client has yet to take something before it can get more."""
        return bool(self._pending) and not self.closed

    def offer(self, data: bytes) -> None:
        """Write what the pipe takes and keep the rest; who offers to a tap that is behind bounds what it keeps."""
        if not self.closed:
            self._pending += data
            self._flush()

    def _flush(self) -> None:
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._fd, self._pending) :]
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
            self.close()

    def _on_client_gone(self, _events: int) -> None:
        self.close()

    def _on_writable(self, _events: int) -> None:
        if self._waiting is not None:
            self._waiting.set(True)

    async def catch_up(self, loop: Loop) -> None:
        """Wait until the client has taken everything; drop it if it has taken nothing for `PATIENCE` seconds."""
        while self.behind:
            if self._waiting is not None:
                await self._waiting
                continue
            self._waiting = writable = loop.timer(PATIENCE)
            loop.remove(self._fd)
            loop.add(self._fd, self._on_writable, select.EPOLLOUT)
            taken = await writable
            loop.remove(self._fd)
            self._waiting = None
            if not self.closed:
                loop.add(self._fd, self._on_client_gone, 0)
            if taken:
                self._flush()
            else:
                self.close()

    def close(self) -> None:
        """Let the client see the end of its stream."""
        if self._waiting is not None:
            self._waiting.set(False)  # whoever waits stops watching the descriptor before its number is free
        if self._fd >= 0:
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
