"""One TCP connection of the streaming server: bytes with backpressure, and an end that loses none.

Everything that can go wrong in one connection ends here, with that connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar, cast

import structlog

T = TypeVar("T")

log = structlog.get_logger(__name__)

HIGH_WATER: Final = 256 * 1024
LOW_WATER: Final = 64 * 1024
"""Bytes that wait to be sent: above the first, writers pause until the second is reached."""

MAX_UNSENT: Final = 4 * 1024 * 1024
"""Bytes that wait to be sent, though writers pause: answers to a peer that asks without reading. It is cut
off."""

LINGER_SECONDS: Final = 5.0
"""How long the peer may take to close its side when everything has been sent to it."""

FLUSH_LOOK_SECONDS: Final = 0.05
"""How often a TLS connection is looked at, at its end, whether all is sent."""

HANGUP_SECONDS: Final = 1.0
"""How often a connection that is not being read is checked for a peer that has left."""

KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS, KEEPALIVE_PROBES = 10, 5, 3
"""A peer that has vanished without a word is gone after 25 s."""

LOOK_SECONDS: Final = 5.0
"""How often a connection is looked at whose peer may have vanished with bytes on their way to it: keep-alive rests then."""

UNANSWERED_SECONDS: Final = 20.0
"""How long such bytes, sent again and again, may stay without an acknowledgement.

TCP_USER_TIMEOUT would do this, but it also ends peers that are there and do not read (`kubectl exec … | less`).
"""

TCP_INFO_RETRANSMITS, TCP_INFO_PROBES, TCP_INFO_UNACKED, TCP_INFO_LAST_ACK = 2, 3, 24, 56
"""Offsets in `struct tcp_info`."""


class ConnectionLostError(Exception):
    """The peer is gone, or was cut off."""


async def unless_lost(lost: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """Do the work; raise ConnectionLostError and cancel it when the connection is lost before it is done."""
    task = asyncio.create_task(work)
    waiter = asyncio.create_task(lost.wait())
    try:
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConnectionLostError
        return task.result()
    finally:
        task.cancel()
        waiter.cancel()
        await asyncio.gather(task, waiter, return_exceptions=True)


class Wire(Protocol):
    """A reliable, ordered stream of bytes to and from a peer: a `Connection`, or something inside one."""

    def set_receiver(self, receiver: Callable[[bytes], None]) -> None:
        """Have bytes delivered to another function from now on."""

    def write(self, data: bytes) -> None:
        """Send bytes. Whoever sends many awaits `drain` in between."""

    async def drain(self) -> None:
        """Return when more may be written. Raises ConnectionLostError."""

    def pause_reading(self) -> None:
        """Deliver no more bytes for now, so that the peer has to wait."""

    def resume_reading(self) -> None:
        """Deliver bytes again."""

    async def finish(self) -> None:
        """Send what waits to be sent, then close."""

    def abort(self) -> None:
        """Close at once."""

    def abort_after_flush(self) -> None:
        """Close when what was written is sent; take nothing more."""

    @property
    def lost(self) -> asyncio.Event:
        """Set when the connection is over."""


class Connection(asyncio.Protocol):
    """An asyncio protocol that is a `Wire`."""

    def __init__(self, on_open: Callable[[Connection], None]) -> None:
        self._on_open = on_open
        self._receiver: Callable[[bytes], None] = self._keep
        self._early = b""
        """What came before there was a receiver: with TLS, a request can come together with the end of the handshake."""
        self._transport: asyncio.Transport | None = None
        self._plain: asyncio.Transport | None = None
        """What is below TLS, if there is TLS."""
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._reading = True
        self._lost = asyncio.Event()
        self._finishing = False
        self._hangup_check: asyncio.TimerHandle | None = None
        self._vanished_check: asyncio.TimerHandle | None = None
        self.silent = True
        """Whether nothing has come yet."""
        self.last_activity = 0.0
        """In the event loop's time."""

    @property
    def lost(self) -> asyncio.Event:
        """Set when the connection is over."""
        return self._lost

    @property
    def peer(self) -> str:
        """For the log."""
        name = self._transport.get_extra_info("peername") if self._transport else None
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unknown"

    def peer_certificate(self) -> bytes:
        """What the peer showed in the TLS handshake, in DER; empty if nothing."""
        tls = self._transport.get_extra_info("ssl_object") if self._transport else None
        return (tls.getpeercert(binary_form=True) or b"") if tls is not None else b""

    # -- asyncio.Protocol
    # --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A peer has connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        _keep_alive(transport.get_extra_info("socket"))
        self.last_activity = asyncio.get_running_loop().time()
        self._check_vanished()
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self.silent = False
        self.last_activity = asyncio.get_running_loop().time()
        if self._finishing:
            return
        try:
            self._receiver(data)
        except Exception:
            log.exception("streaming connection failed", peer=self.peer)
            self.abort()

    def eof_received(self) -> bool:
        """The peer has closed its side. No client of ours closes one side only, so the other follows."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._lost.set()
        self._may_write.set()
        self._stop_hangup_check()
        if self._vanished_check is not None:
            self._vanished_check.cancel()

    def pause_writing(self) -> None:
        """More than HIGH_WATER waits to be sent."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """Less than LOW_WATER waits to be sent."""
        self._may_write.set()

    # -- Wire
    # --------------------------------------------------------------------------------------------------------

    def set_receiver(self, receiver: Callable[[bytes], None]) -> None:
        """Have bytes delivered to another function from now on."""
        self._receiver = receiver
        if early := self._early:
            self._early = b""
            self.data_received(early)

    def _keep(self, data: bytes) -> None:
        self._early += data

    def write(self, data: bytes) -> None:
        """Send bytes; nothing happens when the connection is over."""
        if self._transport is None or self._lost.is_set() or self._finishing or self._transport.is_closing():
            return
        self.last_activity = asyncio.get_running_loop().time()
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            log.warning("streaming client does not read: cut off", peer=self.peer)
            self.abort()

    async def drain(self) -> None:
        """Return when more may be written. Raises ConnectionLostError.

        All who wait are woken at once, and the first of them may write so much that the others have to wait again.
        """
        while not self._may_write.is_set():
            await self._may_write.wait()
        if self._lost.is_set():
            raise ConnectionLostError

    def pause_reading(self) -> None:
        """Deliver no more bytes for now; a peer that leaves meanwhile is noticed even so."""
        if self._reading and self._transport is not None and not self._lost.is_set():
            self._reading = False
            self._transport.pause_reading()
            self._check_hangup()

    def resume_reading(self) -> None:
        """Deliver bytes again."""
        if not self._reading and self._transport is not None:
            self._reading = True
            self._stop_hangup_check()
            if not self._lost.is_set():
                self._transport.resume_reading()

    def _check_hangup(self) -> None:
        """A socket that is not read does not report its end: ask for it."""
        self._hangup_check = None
        connection = self._transport.get_extra_info("socket") if self._transport else None
        if connection is None or connection.fileno() < 0:
            return
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self.abort()
        else:
            self._hangup_check = asyncio.get_running_loop().call_later(HANGUP_SECONDS, self._check_hangup)

    def _check_vanished(self) -> None:
        """Close if nobody acknowledges what the kernel sends again and again. A peer that is there and takes nothing
        acknowledges at least that."""
        self._vanished_check = None
        connection = self._transport.get_extra_info("socket") if self._transport else None
        if connection is None or connection.fileno() < 0 or connection.family == socket.AF_UNIX:
            return
        if _unanswered(connection):
            log.info("streaming client has vanished: closed", peer=self.peer)
            self.abort()
        else:
            self._vanished_check = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._check_vanished)

    def _stop_hangup_check(self) -> None:
        if self._hangup_check is not None:
            self._hangup_check.cancel()
            self._hangup_check = None

    async def finish(self) -> None:
        """Send what waits to be sent, say that it was all, and close when the peer has, or after
        LINGER_SECONDS.

        Closing at once, with bytes from the peer unread, would make the kernel reset the connection, and the
        peer lose what it had not read yet.
        """
        if self._transport is None or self._lost.is_set():
            return
        with contextlib.suppress(ConnectionLostError):
            await self._flushed()
            self._finishing = True
            self.resume_reading()
            # OSError: the peer has reset it, which asyncio is to see yet
            with contextlib.suppress(TimeoutError, OSError):
                if self._transport.can_write_eof():  # TLS cannot: the protocols in it have told their end themselves
                    self._transport.write_eof()
                async with asyncio.timeout(LINGER_SECONDS):
                    await self._lost.wait()
        self._transport.close()

    async def _flushed(self) -> None:
        """Return when the kernel has everything. Raises ConnectionLostError."""
        assert self._transport is not None
        if self._plain is None:
            self._transport.set_write_buffer_limits(0)
            await self.drain()
            return
        # asyncio's TLS takes an empty buffer for one that has reached its limit of 0, and then waits for more to send; and
        # what it has encrypted is in the buffer of the transport below.
        while self._transport.get_write_buffer_size() or self._plain.get_write_buffer_size():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_LOOK_SECONDS):
                    await self._lost.wait()
                raise ConnectionLostError

    def hold(self) -> None:
        """Read nothing until `start_tls`, so that no byte of the handshake is taken for the peer's."""
        assert self._transport is not None
        self._transport.pause_reading()

    async def start_tls(self, context: ssl.SSLContext, seconds: float) -> None:
        """As the server, turn the connection into a TLS one; the handshake may take `seconds`. Raises
        ConnectionLostError."""
        plain = self._transport
        assert plain is not None
        try:
            transport = await asyncio.get_running_loop().start_tls(
                plain, self, context, server_side=True, ssl_handshake_timeout=seconds
            )
        except OSError:
            self._lost.set()
            raise ConnectionLostError from None
        if transport is None or plain.is_closing():
            self._lost.set()
            raise ConnectionLostError
        self._transport, self._plain = transport, plain
        transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def abort_after_flush(self) -> None:
        """Close when what was written is sent; take nothing more."""
        self._finishing = True
        if self._transport is not None:
            self._transport.close()


def _keep_alive(connection: socket.socket | None) -> None:
    """Have the kernel notice that a peer's machine is gone."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _unanswered(connection: socket.socket) -> bool:
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
    except OSError:
        return False
    if len(info) < TCP_INFO_LAST_ACK + 4:
        return False
    again = info[TCP_INFO_RETRANSMITS] if _u32(info, TCP_INFO_UNACKED) else info[TCP_INFO_PROBES]
    return again > 1 and _u32(info, TCP_INFO_LAST_ACK) >= UNANSWERED_SECONDS * 1000


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], sys.byteorder)
