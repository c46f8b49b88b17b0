"""One connection with a plugin: calls in both directions over one socket.

Whatever the peer does wrong ends the connection, with the reason in `why`. It may do little that costs the daemon anything:
messages have their longest size, calls that it makes are counted, and what it does not read is not kept for it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import structlog

from proto import nri_mux, ttrpc
from proto.errors import Code, CrispError

CALLS: Final = 32
"""That a plugin may have under way at once."""

UNSENT_BYTES: Final = 16 << 20
"""What a plugin may leave unread: a few of the longest messages."""

Serve = Callable[[ttrpc.Call], Awaitable[bytes]]
"""Answers a plugin's call with the bytes of its reply; a CrispError refuses it."""

CODES: Final = {
    Code.UNKNOWN: 2,
    Code.INVALID_ARGUMENT: 3,
    Code.DEADLINE_EXCEEDED: ttrpc.DEADLINE_EXCEEDED,
    Code.NOT_FOUND: 5,
    Code.RESOURCE_EXHAUSTED: ttrpc.RESOURCE_EXHAUSTED,
    Code.FAILED_PRECONDITION: 9,
    Code.UNIMPLEMENTED: ttrpc.UNIMPLEMENTED,
    Code.UNAVAILABLE: 14,
}
"""gRPC's numbers."""

log = structlog.get_logger(__name__)


class Broken(Exception):
    """The connection has ended."""


class Connection(asyncio.Protocol):
    """Speaks ttrpc over NRI's multiplexer."""

    def __init__(self, serve: Serve, ended: Callable[[], None]) -> None:
        self._serve = serve
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._demultiplexer = nri_mux.Demultiplexer()
        self._caller = ttrpc.Caller()
        self._callee = ttrpc.Callee()
        self._waiting: dict[int, asyncio.Future[ttrpc.Reply]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self.open = True
        self.reason = ""
        """One of a few words, for the metric."""
        self.why = ""

    # ---- asyncio.Protocol ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """For asyncio."""
        self._transport = cast("asyncio.Transport", transport)
        if not self.open:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """For asyncio."""
        if not self.open:
            return
        for connection, part in self._demultiplexer.receive(data):
            if connection == nri_mux.PLUGIN:
                self._answered(part)
            else:
                self._called(part)
        failure = self._demultiplexer.failure or self._caller.failure or self._callee.failure
        if not failure and self._callee.unanswered > CALLS:
            failure = f"more than {CALLS} calls at once"
        if failure:
            self.close("protocol", f"it does not keep to the protocol: {failure}")

    def connection_lost(self, error: Exception | None) -> None:
        """For asyncio."""
        self.close("left", "the connection was closed" + (f": {error}" if error is not None else ""))

    # ---- for the daemon ----

    def peer_pid(self) -> int:
        """The process that has connected, 0 if it cannot be told."""
        connected: Any = self._transport.get_extra_info("socket") if self._transport is not None else None
        try:
            return int(struct.unpack("iII", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        except (AttributeError, OSError):
            return 0

    async def call(self, service: str, method: str, payload: bytes, seconds: float, told: float) -> ttrpc.Reply:
        """Call the plugin, and tell it that `told` seconds are waited for; the answer, which may be that it failed.

        Raises TimeoutError after `seconds`, Broken, ttrpc.TooLong.
        """
        if not self.open:
            raise Broken(self.why)
        stream, data = self._caller.call(service, method, payload, told)
        answer: asyncio.Future[ttrpc.Reply] = asyncio.get_running_loop().create_future()
        self._waiting[stream] = answer
        try:
            self._send(nri_mux.PLUGIN, data)
            async with asyncio.timeout(seconds):
                return await answer
        finally:
            self._waiting.pop(stream, None)

    def close(self, reason: str, why: str) -> None:
        """End it; what waits for an answer gets Broken."""
        if not self.open:
            return
        self.open, self.reason, self.why = False, reason, why
        if self._transport is not None:
            self._transport.abort()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Broken(why))
        self._ended()

    def _send(self, connection: int, message: bytes) -> None:
        if not self.open or self._transport is None:
            return
        self._transport.write(nri_mux.encode(connection, message))
        if self._transport.get_write_buffer_size() > UNSENT_BYTES:
            self.close("protocol", "it does not read what it is sent")

    def _answered(self, data: bytes) -> None:
        for reply in self._caller.receive(data):
            answer = self._waiting.get(reply.stream)
            if answer is not None and not answer.done():
                answer.set_result(reply)

    def _called(self, data: bytes) -> None:
        calls = self._callee.receive(data)
        for refusal in self._callee.refusals():
            self._send(nri_mux.RUNTIME, refusal)
        if self._callee.unanswered > CALLS:
            return
        for call in calls:
            task = asyncio.ensure_future(self._serve_one(call))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve_one(self, call: ttrpc.Call) -> None:
        try:
            answer = self._callee.answer(call.stream, await self._serve(call))
        except (CrispError, ttrpc.TooLong) as error:
            code = error.code if isinstance(error, CrispError) else Code.RESOURCE_EXHAUSTED
            answer = self._callee.refuse(call.stream, CODES.get(code, ttrpc.INTERNAL), str(error))
        except Exception as error:  # as at the gRPC boundary: a bug ends one call
            log.error("call of an nri plugin failed", method=call.method, exc_info=error)
            answer = self._callee.refuse(call.stream, ttrpc.INTERNAL, "internal error")
        self._send(nri_mux.RUNTIME, answer)
