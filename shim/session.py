"""One connection of the daemon (or of a tool) to a shim: requests in, answers and events out.

A session that does not read what it is sent is dropped: the shim never waits for one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from kernel import fd_messages
from proto import shim_protocol
from proto.errors import Code, CrispError
from proto.shim_protocol import MAX_DATAGRAM, MAX_FDS, Malformed, Message, Request
from shim.execs import Exec
from shim.loop import Loop

_TRUNCATED = int(socket.MSG_TRUNC)  # an enum's & is a hundred objects
MAX_PENDING = 16  # requests of one session that have no answer yet

Answer = tuple[Message, list[int]]
"""Fields of the answer, and descriptors to send with it, which are closed afterwards."""
Serve = Callable[["Session", Request, list[int]], Coroutine[Any, Any, Answer]]


class Session:
    """One accepted connection."""

    def __init__(self, loop: Loop, connection: socket.SocketType, serve: Serve, on_close: Callable[[Session], None]) -> None:
        self.exec: Exec | None = None
        self.holds_stdin = False
        """Whether it has attached to the container's stdin."""
        self.froze = False
        """Whether it has paused the container and not resumed it."""
        self._loop = loop
        self._connection = connection
        self._serve = serve
        self._on_close = on_close
        self._pending = 0
        self._closed = False
        connection.setblocking(False)
        loop.add(connection.fileno(), self._on_readable)

    def _on_readable(self, _events: int) -> None:
        try:
            datagram, fds, flags = fd_messages.receive(self._connection, MAX_DATAGRAM, MAX_FDS)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        for fd in fds:
            os.set_inheritable(fd, False)
        if not datagram:
            self.close()
            return
        request: Request | Malformed = (
            Malformed(0, "too long") if flags & _TRUNCATED else shim_protocol.decode_request(datagram)
        )
        if isinstance(request, Malformed):
            _close_all(fds)
            self._send(shim_protocol.failure(request.seq, Code.INVALID_ARGUMENT, f"shim: {request.message}"))
        elif self._pending >= MAX_PENDING:
            _close_all(fds)
            self._send(shim_protocol.failure(request.seq, Code.RESOURCE_EXHAUSTED, "shim: too many requests at once"))
        else:
            self._loop.spawn(self._handle(request, fds))

    async def _handle(self, request: Request, fds: list[int]) -> None:
        """Serve one request and answer it, whatever happens."""
        self._pending += 1
        lent: list[int] = []
        try:
            result, lent = await self._serve(self, request, fds)
            answer = shim_protocol.answer(request.seq, result)
        except CrispError as error:
            answer = shim_protocol.failure(request.seq, error.code, error.message)
        except OSError as error:
            answer = shim_protocol.failure(request.seq, Code.INTERNAL, f"{request.op}: {error}")
        except Exception as error:
            answer = shim_protocol.failure(request.seq, Code.INTERNAL, f"shim: {request.op}: {error!r}")
            raise
        finally:
            self._pending -= 1
            self._send(answer, lent)
            _close_all(fds)
            _close_all(lent)

    def tell(self, event: Message) -> None:
        """Send an event."""
        self._send(shim_protocol.encode(event))

    def _send(self, datagram: bytes, fds: list[int] | None = None) -> None:
        if self._closed:
            return
        try:
            fd_messages.send(self._connection, datagram, fds or [])
        except OSError:  # gone, or its queue is full
            self.close()

    def close(self) -> None:
        """End the session."""
        if not self._closed:
            self._closed = True
            self._loop.remove(self._connection.fileno())
            self._connection.close()
            self._on_close(self)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
