"""The streaming server: URLs with tokens for the gRPC side, sessions for the clients that come with them.

    accept → request (token) → switch protocols → streams → process or port ⇄ client → end

Each connection has a task of its own, and whatever goes wrong in it ends it and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import structlog

from proto.errors import Code, CrispError, not_found
from runtime.streaming import http_upgrade, portforward, websocket
from runtime.streaming.config import StreamingConfig
from runtime.streaming.connection import Connection, ConnectionLostError, Wire, unless_lost
from runtime.streaming.http_upgrade import Rejection, Upgrade, UpgradeDecoder, UpgradeRequest
from runtime.streaming.process_session import ProcessSession
from runtime.streaming.remote_command import (
    SPDY_PROTOCOLS,
    StreamOptions,
    Streams,
    TerminalSizes,
    exit_message,
    expected_streams,
    failure_message,
)
from runtime.streaming.seam import ProcessIO, StreamingBackend
from runtime.streaming.session import Session, Stream, StreamResetError
from runtime.streaming.spdy_session import SpdySession
from runtime.streaming.tokens import Tokens
from runtime.streaming.websocket import ChannelConnection
from runtime.streaming.websocket_session import WebSocketSession, WebSocketTunnel

log = structlog.get_logger(__name__)

REQUEST_SECONDS: Final = 30.0
"""How long a client may take to send its request."""

MAX_CONNECTIONS: Final = 4096
"""Sessions at once; more are closed as they come."""

MAX_STRANGERS: Final = 1024
"""Connections at once that have not shown a token yet, as anybody on the node can open: for one more, the oldest that has
said nothing is closed. As many clients may come with tokens at the same moment (tokens.py), and each speaks at once."""

TELL_SECONDS: Final = 10.0
"""How often at most the log says that there are too many."""

BACKLOG: Final = 1024

CHANNELS: Final = {"stdin": 0, "stdout": 1, "stderr": 2, "error": 3, "resize": 4}
"""Over WebSocket."""

COMMAND_WEBSOCKET_PROTOCOLS: Final = (
    websocket.V5,
    websocket.V4,
    websocket.V4_BASE64,
    websocket.V1,
    websocket.V1_BASE64,
    "",
)
TUNNEL_PROTOCOL: Final = websocket.TUNNEL_PREFIX + portforward.PROTOCOL
FORWARD_WEBSOCKET_PROTOCOLS: Final = (TUNNEL_PROTOCOL, websocket.V4, websocket.V4_BASE64, "")


@dataclass(frozen=True, slots=True)
class ExecTicket:
    """What an Exec asked for."""

    container_id: str
    cmd: tuple[str, ...]
    options: StreamOptions
    changes: Mapping[str, Any] = field(default_factory=dict)
    verb = "exec"


@dataclass(frozen=True, slots=True)
class AttachTicket:
    """What an Attach asked for."""

    container_id: str
    options: StreamOptions
    verb = "attach"


@dataclass(frozen=True, slots=True)
class ForwardTicket:
    """What a PortForward asked for."""

    sandbox_id: str
    ports: tuple[int, ...]
    """For clients of the older form over WebSocket, which do not name them."""
    verb = "portforward"


Ticket = ExecTicket | AttachTicket | ForwardTicket


class StreamingServer:
    """Serves exec, attach and port-forward."""

    def __init__(self, config: StreamingConfig, backend: StreamingBackend) -> None:
        self._config = config
        self._backend = backend
        self._tokens: Tokens[Ticket] = Tokens()
        self._server: asyncio.Server | None = None
        self._sessions: dict[asyncio.Task[None], Connection] = {}
        """All connections, in the order in which they came."""
        self._strangers: dict[asyncio.Task[None], Connection] = {}
        """Those of them without a token."""
        self._execs: dict[str, ProcessIO] = {}
        """Commands with a terminal that run, by their tokens."""
        self._told_at = -TELL_SECONDS
        self._tls: ssl.SSLContext | None = None
        self.certificate = ""
        """SHA-256 of the certificate that clients are shown, in hexadecimal digits; empty without TLS."""
        self._base_url = ""

    async def start(self) -> None:
        """Listen. Raises FAILED_PRECONDITION if the address or the certificate cannot be used."""
        config = self._config
        try:
            self._tls = _tls(config)
            if config.tls_certificate:
                self.certificate = await asyncio.to_thread(_fingerprint, config.tls_certificate)
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Connection(self._accept),
                config.address,
                config.port,
                backlog=BACKLOG,
                reuse_address=True,
            )
        except (OSError, ValueError) as error:
            raise CrispError(
                Code.FAILED_PRECONDITION, f"cannot serve streams on {config.address} port {config.port}: {error}"
            ) from None
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{config.address}]" if ":" in config.address else config.address
        self._base_url = f"{'https' if config.tls_certificate else 'http'}://{host}:{port}"

    async def stop(self) -> None:
        """Stop listening and end all sessions."""
        if self._server is not None:
            self._server.close()
        sessions = list(self._sessions.items())
        for task, connection in sessions:
            connection.abort()
            task.cancel()
        await asyncio.gather(*(task for task, _ in sessions), return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    # -- for the gRPC side -------------------------------------------------------------------------------------------

    def exec_url(
        self,
        container_id: str,
        cmd: Sequence[str],
        *,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        changes: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Where a client can run a command. Raises INVALID_ARGUMENT for impossible streams, RESOURCE_EXHAUSTED."""
        return self._url(ExecTicket(container_id, tuple(cmd), StreamOptions(tty, stdin, stdout, stderr), changes))

    async def leave_exec(self, url: str) -> None:
        """Let the command that runs at this URL, in a terminal, go on when its client goes. NOT_FOUND if none does."""
        io = self._execs.get(url.rpartition("/")[2])
        if io is None:
            raise not_found("no command runs in a terminal at that URL")
        await io.leave()

    def attach_url(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        """Where a client can attach. Raises INVALID_ARGUMENT for impossible streams, RESOURCE_EXHAUSTED."""
        return self._url(AttachTicket(container_id, StreamOptions(tty, stdin, stdout, stderr)))

    def port_forward_url(self, sandbox_id: str, ports: Sequence[int] = ()) -> str:
        """Where a client can reach ports. Raises RESOURCE_EXHAUSTED."""
        return self._url(ForwardTicket(sandbox_id, tuple(ports)))

    def _url(self, ticket: Ticket) -> str:
        return f"{self._base_url}/{ticket.verb}/{self._tokens.issue(ticket)}"

    # -- for the clients ---------------------------------------------------------------------------------------------

    def _accept(self, connection: Connection) -> None:
        if len(self._sessions) - len(self._strangers) >= MAX_CONNECTIONS:
            self._tell("too many streaming sessions: closing those that come", MAX_CONNECTIONS)
            connection.abort()
            return
        if len(self._strangers) >= MAX_STRANGERS:
            self._tell("too many streaming clients without a request: closing the oldest", MAX_STRANGERS)
            silent = (task for task, other in self._strangers.items() if other.silent)
            oldest = next(silent, next(iter(self._strangers)))
            self._strangers.pop(oldest).abort()
        if self._tls is not None:
            connection.hold()
        task = asyncio.create_task(self._serve(connection))
        self._sessions[task] = self._strangers[task] = connection
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._sessions.pop(task, None)
        self._strangers.pop(task, None)

    def _tell(self, message: str, limit: int) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            log.warning(message, limit=limit)

    async def _serve(self, connection: Connection) -> None:
        idle = asyncio.create_task(self._end_when_idle(connection))
        try:
            if self._tls is not None:
                await connection.start_tls(self._tls, REQUEST_SECONDS)
            request = await _receive_request(connection)
            if request is not None:
                await self._answer(connection, request)
        except (ConnectionLostError, StreamResetError):
            pass
        except Exception:
            log.exception("streaming session failed", peer=connection.peer)
        finally:
            idle.cancel()
            connection.abort()

    async def _end_when_idle(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        limit = self._config.idle_timeout_seconds
        rest = limit
        while rest > 0:
            await asyncio.sleep(rest)
            rest = connection.last_activity + limit - loop.time()
        log.info("streaming session was idle: closed", peer=connection.peer, seconds=limit)
        connection.abort()

    async def _answer(self, connection: Connection, request: UpgradeRequest) -> None:
        ticket = self._tokens.redeem(request.token)
        if ticket is None or ticket.verb != request.verb:
            await _reject(connection, Rejection(HTTPStatus.NOT_FOUND, "the token is unknown, used up or expired"))
            return
        if (task := asyncio.current_task()) is not None:
            self._strangers.pop(task, None)
        if isinstance(ticket, ForwardTicket):
            await self._forward(connection, request, ticket)
        else:
            await self._command(connection, request, ticket)

    async def _command(self, connection: Connection, request: UpgradeRequest, ticket: ExecTicket | AttachTicket) -> None:
        ours = SPDY_PROTOCOLS if request.upgrade is Upgrade.SPDY else COMMAND_WEBSOCKET_PROTOCOLS
        protocol = http_upgrade.negotiate(request, ours)
        if isinstance(protocol, Rejection):
            await _reject(connection, protocol)
            return
        if request.upgrade is Upgrade.SPDY:
            opened = await self._spdy_streams(connection, request, protocol, ticket.options)
        else:
            opened = await _websocket_streams(connection, request, protocol, ticket.options)
        if opened is None:
            return
        session, streams = opened
        watcher = asyncio.create_task(session.watch())
        try:
            message = await self._run(ticket, session, streams, protocol, request.token)
            if message:
                await streams.error.write(message)
            await session.finish()
        finally:
            watcher.cancel()

    async def _run(
        self, ticket: ExecTicket | AttachTicket, session: Session, streams: Streams, protocol: str, token: str
    ) -> bytes:
        """Run the session; returns what is to be said at its end."""
        sizes = TerminalSizes(streams.resize)
        try:
            io = await self._open(ticket, session, sizes)
        except CrispError as error:
            return failure_message(protocol, error.message)
        except Exception:
            log.exception("cannot open a streaming session", verb=ticket.verb, container=ticket.container_id)
            return failure_message(protocol, f"{ticket.verb} failed for a reason that is in the log of crisp")
        is_attach = isinstance(ticket, AttachTicket)
        if ticket.options.tty and not is_attach:
            self._execs[token] = io
        try:
            code = await ProcessSession(io, streams, sizes, is_attach=is_attach).run(session)
        finally:
            self._execs.pop(token, None)
        return exit_message(protocol, code)

    async def _open(self, ticket: ExecTicket | AttachTicket, session: Session, sizes: TerminalSizes) -> ProcessIO:
        options = ticket.options
        if isinstance(ticket, AttachTicket):
            return await self._backend.attach(
                ticket.container_id,
                tty=options.tty,
                stdin=options.stdin,
                stdout=options.stdout,
                stderr=options.stderr,
            )
        size = await unless_lost(session.lost, sizes.first()) if options.tty else None
        return await self._backend.exec(
            ticket.container_id,
            ticket.cmd,
            size=size,
            changes=ticket.changes,
            tty=options.tty,
            stdin=options.stdin,
            stdout=options.stdout,
            stderr=options.stderr,
        )

    async def _spdy_streams(
        self, connection: Connection, request: UpgradeRequest, protocol: str, options: StreamOptions
    ) -> tuple[Session, Streams] | None:
        """Switch to SPDY and wait for the streams that the request was about."""
        missing = set(expected_streams(options, protocol))
        streams: dict[str, Stream] = {}
        complete = asyncio.Event()

        def on_stream(stream: Stream) -> bool:
            kind = stream.headers.get("streamtype", "")
            if kind not in missing:
                return False
            missing.discard(kind)
            streams[kind] = stream
            if not missing:
                complete.set()
            return True

        connection.write(http_upgrade.switch_to_spdy(protocol))
        session = SpdySession(connection, is_server=True, on_stream=on_stream)
        connection.data_received(request.rest)
        try:
            async with asyncio.timeout(self._config.stream_creation_timeout_seconds):
                await unless_lost(connection.lost, complete.wait())
        except TimeoutError:
            log.info("streaming client did not open its streams", peer=connection.peer, missing=sorted(missing))
            await session.finish()
            return None
        return session, Streams(**streams)

    async def _forward(self, connection: Connection, request: UpgradeRequest, ticket: ForwardTicket) -> None:
        spdy = request.upgrade is Upgrade.SPDY
        ours = (portforward.PROTOCOL,) if spdy else FORWARD_WEBSOCKET_PROTOCOLS
        protocol = http_upgrade.negotiate(request, ours)
        if isinstance(protocol, str) and not spdy and protocol != TUNNEL_PROTOCOL and not ticket.ports:
            protocol = Rejection(
                HTTPStatus.BAD_REQUEST, f"the request named no ports: use {TUNNEL_PROTOCOL} or SPDY, or name them"
            )
        if isinstance(protocol, Rejection):
            await _reject(connection, protocol)
            return

        async def dial(port: int) -> socket.socket:
            return await self._backend.dial(ticket.sandbox_id, port)

        if spdy:
            connection.write(http_upgrade.switch_to_spdy(protocol))
            await self._forward_spdy(connection, connection, request.rest, dial)
            return
        codec = await _accept_websocket(connection, request, protocol)
        if codec is None:
            return
        if protocol == TUNNEL_PROTOCOL:
            await self._forward_spdy(connection, WebSocketTunnel(connection, codec), request.rest, dial)
        else:
            await portforward.serve_channels(connection, codec, ticket.ports, dial)

    async def _forward_spdy(self, connection: Connection, wire: Wire, rest: bytes, dial: portforward.Dial) -> None:
        pair_seconds = self._config.stream_creation_timeout_seconds
        forwarder = portforward.SpdyForwarder(wire, dial, pair_seconds=pair_seconds)
        connection.data_received(rest)
        await forwarder.run()


def _tls(config: StreamingConfig) -> ssl.SSLContext | None:
    if not config.tls_certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(config.tls_certificate, config.tls_key)
    return context


def _fingerprint(path: str) -> str:
    """Of the first certificate of a file. Raises OSError or ValueError."""
    text = Path(path).read_text(encoding="ascii", errors="replace")
    begin, end = text.index(ssl.PEM_HEADER), text.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[begin:end])).hexdigest()


async def _receive_request(connection: Connection) -> UpgradeRequest | None:
    """The connection's request; None if it was bad and has been answered."""
    decoder = UpgradeDecoder()
    outcome: asyncio.Future[UpgradeRequest | Rejection] = asyncio.get_running_loop().create_future()

    def receive(data: bytes) -> None:
        if not outcome.done() and (result := decoder.receive_data(data)) is not None:
            # What comes from now on belongs to the next protocol, which is not there yet.
            connection.pause_reading()
            outcome.set_result(result)

    async def received() -> UpgradeRequest | Rejection:
        return await outcome

    connection.set_receiver(receive)
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            result = await unless_lost(connection.lost, received())
    except TimeoutError:
        result = Rejection(HTTPStatus.REQUEST_TIMEOUT, f"no request came within {REQUEST_SECONDS:g} s")
    if isinstance(result, Rejection):
        await _reject(connection, result)
        return None
    connection.resume_reading()
    return result


async def _reject(connection: Connection, rejection: Rejection) -> None:
    connection.write(rejection.encode())
    await connection.finish()


async def _accept_websocket(connection: Connection, request: UpgradeRequest, protocol: str) -> ChannelConnection | None:
    codec = ChannelConnection(protocol)
    if (wrong := codec.accept(request.headers, request.path)) is not None:
        await _reject(connection, Rejection(HTTPStatus.BAD_REQUEST, wrong))
        return None
    return codec


async def _websocket_streams(
    connection: Connection, request: UpgradeRequest, protocol: str, options: StreamOptions
) -> tuple[Session, Streams] | None:
    """Switch to WebSocket. Its channels are all there at once."""
    codec = await _accept_websocket(connection, request, protocol)
    if codec is None:
        return None
    wanted = expected_streams(options, websocket.V5)
    session = WebSocketSession(connection, codec, (CHANNELS[kind] for kind in wanted))
    connection.data_received(request.rest)
    streams = Streams(**{kind: session.streams[CHANNELS[kind]] for kind in wanted})
    # As the Kubernetes server does: an empty message on the first channel that the client reads.
    first = streams.stdout or streams.stderr or streams.error
    with contextlib.suppress(ConnectionLostError):
        await first.write(b"")
    return session, streams
