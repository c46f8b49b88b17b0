"""What the streaming server knows of the rest of the daemon."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class ProcessIO(Protocol):
    """A process's end of an exec or attach session.

    The file descriptors pass to the session, which makes them nonblocking and closes them. For a terminal
    `stdin` and `stdout` are the pty's master: one descriptor, or two that refer to it.
    """

    stdin: int | None
    stdout: int | None
    stderr: int | None

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size, in characters; without a terminal nothing happens."""

    async def close_stdin(self) -> None:
        """The client will send no more. The session closes its descriptor itself, unless it is the
        terminal's."""

    async def leave(self) -> None:
        """Let a process with a terminal go on when the session ends. Raises CrispError if it cannot."""

    async def wait(self) -> int:
        """Exec: the exit code when the process has ended, 128 + n after signal n. Attach: returns when the
        container ends.

        Never raises; may be cancelled.
        """

    async def close(self) -> None:
        """End the session. Exec: kills what still runs of the process and its children. Attach: lets go of
        the container."""


class StreamingBackend(Protocol):
    """Who makes the processes and connections that sessions are about. Failures are CrispErrors."""

    async def exec(
        self,
        container_id: str,
        cmd: Sequence[str],
        *,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        size: tuple[int, int] | None,
        changes: Mapping[str, Any],
    ) -> ProcessIO:
        """Start a process in a container; `size` is its terminal's width and height in characters, if that is known.

        `changes` are what its OCI process has otherwise than the container's: `env` (in place of those of the same names),
        `cwd`, `user`.
        """

    async def attach(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> ProcessIO:
        """Connect to a container's own process, from now on."""

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        """Connect to a TCP port inside the pod; the socket is nonblocking and passes to the session."""
