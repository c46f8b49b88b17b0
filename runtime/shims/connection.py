"""One session of the daemon with a shim: requests and answers matched by number, events passed on."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from proto import shim_protocol
from proto.errors import Code, CrispError
from proto.shim_protocol import MAX_DATAGRAM, MAX_FDS, Message

USUAL_ANSWER_SECONDS: Final = 20.0
"""What a shim does by itself it does at once; on a host that is short of everything it may take a while to run."""

ANSWER_SECONDS: Final[dict[str, float | None]] = {
    "create": 240.0,  # hooks, and large directories for SELinux
    "checkpoint": None,  # as long as the memory is large
    "start": 240.0,  # hooks
    "kill": 45.0,  # the shim itself says after 30 s what does not die
    "exec": 60.0,
    "update": 60.0,
    "pause": 60.0,
    "resume": 60.0,
}
"""How long an answer may take that needs the OCI runtime or the end of processes. A shim that hangs must not hang the
daemon's calls."""


class Connection:
    """An open session; `closed` is done once it has ended, by either side."""

    def __init__(self, channel: socket.socket, on_event: Callable[[Message], None]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.version = shim_protocol.VERSION
        """What the shim speaks; its `hello` says so before anything is asked on the control session."""
        self._channel = channel
        self._on_event = on_event
        self._answers: dict[int, asyncio.Future[tuple[Message, list[int]]]] = {}
        self._seq = 0
        asyncio.get_running_loop().add_reader(channel.fileno(), self._on_readable)

    @classmethod
    def open(cls, bundle: str, on_event: Callable[[Message], None]) -> Connection:
        """Connect to the shim of `bundle`; the kernel queues the connection. UNAVAILABLE if nobody listens or takes it."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.setblocking(False)  # before connecting: that of a shim which takes no connections any more would block
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
        return cls(channel, on_event)

    def _on_readable(self) -> None:
        try:
            datagram, fds, _, _ = socket.recv_fds(self._channel, MAX_DATAGRAM, MAX_FDS)
        except (BlockingIOError, ConnectionResetError):
            # A reset is told once, if the shim has left with a request unread. What it has sent before is still there.
            return
        except OSError:
            datagram, fds = b"", []
        message = shim_protocol.decode(datagram)
        if message is None:
            close_all(*fds)
            self.close()
        elif "event" in message:
            close_all(*fds)
            self._on_event(message)
        else:
            self._resolve(message, fds)

    def _resolve(self, message: Message, fds: list[int]) -> None:
        answer = self._answers.pop(message.get("seq", 0), None)
        if answer is None or answer.done():
            close_all(*fds)
        elif "error" in message:
            close_all(*fds)
            answer.set_exception(shim_protocol.error_from(message["error"]))
        else:
            answer.set_result((message.get("ok") or {}, fds))

    async def request(self, op: str, fds: Sequence[int] = (), **fields: Any) -> tuple[Message, list[int]]:
        """Ask, and wait for the answer: its fields, and descriptors that are now the caller's.

        DEADLINE_EXCEEDED if the shim does not answer within the operation's time in `ANSWER_SECONDS`.
        """
        if self.closed.done():
            raise CrispError(Code.UNAVAILABLE, f"{op}: the container's shim is gone")
        self._seq += 1
        datagram = shim_protocol.request(op, self._seq, fields, self.version)
        if len(datagram) > MAX_DATAGRAM:
            raise CrispError(Code.INVALID_ARGUMENT, f"{op}: {len(datagram)} bytes are more than the shim takes")
        answer: asyncio.Future[tuple[Message, list[int]]] = asyncio.get_running_loop().create_future()
        seq = self._seq
        self._answers[seq] = answer
        silent = CrispError(Code.DEADLINE_EXCEEDED, f"{op}: the container's shim does not answer")
        try:
            socket.send_fds(self._channel, [datagram], fds)
            async with asyncio.timeout(ANSWER_SECONDS.get(op, USUAL_ANSWER_SECONDS)):
                return await answer
        except (BlockingIOError, TimeoutError):  # it has read nothing for long, or does not answer this
            raise silent from None
        except OSError as error:
            self._answers.pop(seq, None)
            self.close()
            raise CrispError(Code.UNAVAILABLE, f"{op}: the container's shim is gone: {error.strerror}") from error
        finally:
            self._answers.pop(seq, None)

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


def close_all(*fds: int) -> None:
    """Close those of `fds` that are not -1."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)
