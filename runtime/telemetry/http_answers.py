"""A small HTTP server for answers to GET: the metrics endpoint.

h11 speaks the protocol, asyncio moves the bytes. Requests have no body, answers are short, and a client has ten seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import h11
import structlog

from proto.errors import Code, CrispError, invalid

HEAD_BYTES: Final = 16 * 1024
CLIENT_SECONDS: Final = 10.0
CLIENTS: Final = 16

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a path gives."""

    body: bytes
    content_type: str
    status: int = 200


MISSING: Final = Answer(b"not found\n", "text/plain", 404)

Handler = Callable[[str], Awaitable[Answer]]
"""From the path, without its query, to the answer."""


class HttpAnswers:
    """Serves one handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def listen_tcp(self, address: str) -> None:
        """Serve on host:port; INVALID_ARGUMENT or UNAVAILABLE if that cannot be."""
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise invalid(f"{address!r} is not host:port")
        try:
            self._server = await asyncio.start_server(self._accept, host.strip("[]"), int(port), limit=HEAD_BYTES)
        except OSError as error:
            raise CrispError(Code.UNAVAILABLE, f"cannot listen on {address}: {error.strerror}") from None

    @property
    def port(self) -> int:
        """The TCP port, for an address that left its choice to the kernel."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Take no more clients and leave those that are there."""
        if self._server is not None:
            self._server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) <= CLIENTS:
                async with asyncio.timeout(CLIENT_SECONDS):
                    await self._converse(reader, writer)
        except (TimeoutError, OSError, h11.RemoteProtocolError):
            pass  # the client's doing, and the client's loss
        finally:
            self._clients.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(HEAD_BYTES))
            elif isinstance(event, h11.Request):
                writer.write(await self._respond(connection, event))
                await writer.drain()
                return
            else:  # ConnectionClosed
                return

    async def _respond(self, connection: h11.Connection, request: h11.Request) -> bytes:
        if request.method != b"GET":
            answer = Answer(b"only GET is answered\n", "text/plain", 405)
        else:
            answer = await self._answer(request.target.decode("latin-1").partition("?")[0])
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Connection", "close"),
        ]
        head = connection.send(h11.Response(status_code=answer.status, headers=headers))
        return (head or b"") + answer.body

    async def _answer(self, path: str) -> Answer:
        try:
            return await self._handler(path)
        except Exception as error:  # as at the gRPC boundary: a bug ends one call
            log.error("HTTP answer failed", path=path, exc_info=error)
            return Answer(b"internal error\n", "text/plain", 500)
