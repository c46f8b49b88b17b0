"""The other side: what `crisp exec`, `crisp attach` and `crisp port-forward` do with a URL.

It speaks SPDY/3.1, as crictl.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import itertools
import json
import os
import signal
import socket
import ssl
import sys
import termios
import threading
import tty as terminal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import h11

from kernel.descriptors import write_all
from proto.errors import Code, CrispError
from runtime.streaming import portforward
from runtime.streaming.connection import Connection, ConnectionLostError, unless_lost
from runtime.streaming.detach_keys import DetachKeys
from runtime.streaming.http_upgrade import PROTOCOL_HEADER, SPDY
from runtime.streaming.relay import CHUNK_BYTES, read_fd, write_fd
from runtime.streaming.remote_command import SPDY_PROTOCOLS, StreamOptions, expected_streams
from runtime.streaming.session import Stream, StreamResetError
from runtime.streaming.spdy_session import SpdySession

CONNECT_SECONDS: Final = 30.0

INTERNAL: Final = "Internal error occurred: "
"""With which Kubernetes' servers begin to say why a command has not run, whoever's fault it is."""


async def connect(url: str, protocols: Sequence[str], certificate: str = "") -> tuple[SpdySession, str]:
    """Open a session; returns it with the protocol that was agreed on.

    With an https URL the server must show the certificate with the SHA-256 `certificate` (hexadecimal), as the daemon
    has said over its socket, whoever signed it and for what name; without that, one of the system's authorities must vouch
    for it. Raises UNAVAILABLE, or what the server refused with.
    """
    parts = urlsplit(url)
    secure = _tls(certificate) if parts.scheme == "https" else None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(lambda _: None), parts.hostname or "", parts.port or (443 if secure else 80), ssl=secure
            )
            if certificate and secure is not None:
                _check_certificate(connection, parts.netloc, certificate)
            protocol, rest = await unless_lost(connection.lost, _upgrade(connection, parts.path, parts.netloc, protocols))
    except (OSError, TimeoutError, ConnectionLostError) as error:
        raise CrispError(Code.UNAVAILABLE, f"cannot connect to {parts.netloc}: {error or 'no answer'}") from None
    session = SpdySession(connection, is_server=False)
    connection.data_received(rest)
    connection.resume_reading()
    return session, protocol


def _tls(certificate: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if certificate:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the certificate itself is known: see _check_certificate
    return context


def _check_certificate(connection: Connection, host: str, wanted: str) -> None:
    shown = hashlib.sha256(connection.peer_certificate()).hexdigest()
    if shown != wanted:
        connection.abort()
        raise CrispError(Code.UNAVAILABLE, f"{host} shows another certificate than the daemon's: {shown}, not {wanted}")


async def _upgrade(connection: Connection, path: str, host: str, protocols: Sequence[str]) -> tuple[str, bytes]:
    """Ask for SPDY; returns the chosen protocol and the bytes that came after the answer."""
    http = h11.Connection(h11.CLIENT)
    answered: asyncio.Future[h11.InformationalResponse] = asyncio.get_running_loop().create_future()
    refusal: list[Any] = []

    def receive(data: bytes) -> None:
        try:
            http.receive_data(data)
            while not answered.done() and (event := http.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                    connection.pause_reading()
                    answered.set_result(event)
                elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                    answered.set_exception(_refused(refusal))
                else:
                    refusal.append(event)
        except h11.RemoteProtocolError as error:
            answered.set_exception(CrispError(Code.UNAVAILABLE, f"{host} does not speak HTTP: {error}"))

    connection.set_receiver(receive)
    headers = [("Host", host), ("Connection", "Upgrade"), ("Upgrade", SPDY), ("Content-Length", "0")]
    headers += [(PROTOCOL_HEADER, protocol) for protocol in protocols]
    request = http.send(h11.Request(method="POST", target=path, headers=headers)) or b""
    connection.write(request + (http.send(h11.EndOfMessage()) or b""))
    response = await answered
    wanted = PROTOCOL_HEADER.lower().encode()
    protocol = next((value.decode() for name, value in response.headers if name == wanted), "")
    return protocol, http.trailing_data[0]


def _refused(events: Sequence[Any]) -> CrispError:
    status = next((event.status_code for event in events if isinstance(event, h11.Response)), 0)
    text = b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data)).decode(errors="replace").strip()
    code = {404: Code.NOT_FOUND, 429: Code.RESOURCE_EXHAUSTED}.get(status, Code.UNAVAILABLE)
    return CrispError(code, text or f"the server answered with status {status}")


# -- exec and attach -------------------------------------------------------------------------------------------------


class DetachedError(Exception):
    """Who is at the terminal has left it, by the detach keys."""


class Input:
    """What a descriptor of this program has to say, read by a thread: it may be a file, and a terminal's flags are not ours.

    The thread may outlast one session's interest in it: what it has read then is the next one's.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._chunks: collections.deque[bytes] = collections.deque()
        self._wanted = threading.Semaphore(0)
        self._asked = self._ended = False
        self._thread: threading.Thread | None = None
        self._tell: Callable[[], object] = lambda: None

    def _read(self) -> None:
        data = b"begin"
        while data:
            self._wanted.acquire()
            try:
                data = os.read(self.fd, CHUNK_BYTES)
            except OSError:
                data = b""
            self._chunks.append(data)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._tell()

    async def next(self) -> bytes:
        """The next piece; empty at the end."""
        if self._ended:
            return b""
        loop, come = asyncio.get_running_loop(), asyncio.Event()
        self._tell = lambda: loop.call_soon_threadsafe(come.set)
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="stdin", daemon=True)
            self._thread.start()
        if not self._asked:
            self._asked = True
            self._wanted.release()
        while not self._chunks:
            await come.wait()
        self._asked = False
        data = self._chunks.popleft()
        self._ended = not data
        return data


async def run_command(
    url: str,
    options: StreamOptions,
    *,
    stdin: int | Input,
    stdout: int,
    stderr: int,
    certificate: str = "",
    detach_keys: bytes = b"",
    on_detach: Callable[[], object] = lambda: None,
    written: dict[int, int] | None = None,
) -> int:
    """Join descriptors of this program with an exec's or attach's streams; returns the exit code.

    With a terminal on both sides it is raw for as long as this takes, its size is followed, and the detach keys end it with
    DetachedError, when `on_detach` was called in a thread. `written` counts the bytes that each descriptor got. Raises the
    failure that the server reports, or UNAVAILABLE if the connection is lost.
    """
    session, protocol = await connect(url, SPDY_PROTOCOLS, certificate)
    watcher = asyncio.create_task(session.watch())
    source = stdin if isinstance(stdin, Input) else Input(stdin)
    try:
        counts = written if written is not None else {}
        joined = _Joined(session, source, {"stdout": stdout, "stderr": stderr}, detach_keys, on_detach, counts)
        return await joined.run(options, protocol)
    except (ConnectionLostError, StreamResetError):
        raise CrispError(Code.UNAVAILABLE, "the connection was lost before the command ended") from None
    finally:
        session.abort()
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)


class _Joined:
    """A session's streams, and descriptors of this program."""

    def __init__(
        self,
        session: SpdySession,
        source: Input,
        outputs: dict[str, int],
        detach_keys: bytes,
        on_detach: Callable[[], object],
        written: dict[int, int],
    ) -> None:
        self._session = session
        self._source = source
        self._outputs = outputs
        self._keys = DetachKeys(detach_keys)
        self._on_detach = on_detach
        self._written = written
        self._left = asyncio.Event()

    async def run(self, options: StreamOptions, protocol: str) -> int:
        """The exit code."""
        # The error stream first, as other clients do: a server may count on it.
        kinds = sorted(expected_streams(options, protocol), key=lambda kind: kind != "error")
        streams = {kind: await self._session.open({"streamtype": kind}) for kind in kinds}
        fd = self._source.fd
        raw = options.tty and options.stdin and os.isatty(fd)
        message = asyncio.create_task(_all(streams["error"]))
        left = asyncio.create_task(self._left.wait())
        ending: list[asyncio.Task[Any]] = [message]
        background: list[asyncio.Task[Any]] = [left]
        with _raw(fd) if raw else contextlib.nullcontext():
            try:
                if "stdin" in streams:
                    background.append(asyncio.create_task(self._send_input(streams["stdin"])))
                if "resize" in streams and os.isatty(fd):
                    background.append(asyncio.create_task(_send_size(fd, streams["resize"])))
                for kind, output in self._outputs.items():
                    if kind in streams:
                        ending.append(asyncio.create_task(self._print(streams[kind], output)))
                background.append(ended := asyncio.create_task(_all_done(ending)))
                await asyncio.wait((ended, left), return_when=asyncio.FIRST_COMPLETED)
                if not ended.done():
                    await asyncio.to_thread(self._on_detach)
                    raise DetachedError
                ended.result()
            finally:
                for task in (*background, *ending):
                    task.cancel()
                await asyncio.gather(*background, *ending, return_exceptions=True)
        return _exit_code(message.result())

    async def _print(self, stream: Stream, fd: int) -> None:
        """Write to a descriptor of this program. If that blocks, everything waits, as it should."""
        async for data in _chunks(stream):
            write_all(fd, data)
            self._written[fd] = self._written.get(fd, 0) + len(data)

    async def _send_input(self, stream: Stream) -> None:
        with contextlib.suppress(StreamResetError):
            while data := await self._source.next():
                if passed := self._keys.feed(data):
                    await stream.write(passed)
                if self._keys.pressed:
                    self._left.set()
                    return
            stream.end()


async def _all_done(tasks: Sequence[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks)


async def _all(stream: Stream) -> bytes:
    return b"".join([data async for data in _chunks(stream)])


async def _chunks(stream: Stream) -> AsyncIterator[bytes]:
    while data := await stream.read():
        yield data


async def _send_size(fd: int, stream: Stream) -> None:
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    changed.set()
    loop.add_signal_handler(signal.SIGWINCH, changed.set)
    try:
        while True:
            await changed.wait()
            changed.clear()
            size = os.get_terminal_size(fd)
            await stream.write(json.dumps({"Width": size.columns, "Height": size.lines}).encode() + b"\n")
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    terminal.setraw(fd, termios.TCSANOW)  # not TCSAFLUSH: what was typed ahead is meant for the command
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # it is gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _exit_code(message: bytes) -> int:
    """What the error stream said at the end."""
    if not message:
        return 0
    try:
        status = json.loads(message)
        if status["status"] == "Success":
            return 0
        for cause in status.get("details", {}).get("causes", ()):
            if status.get("reason") == "NonZeroExitCode" and cause.get("reason") == "ExitCode":
                return int(cause["message"])
        text = str(status.get("message")).removeprefix(INTERNAL)
    except (ValueError, KeyError, TypeError, AttributeError):
        text = message.decode(errors="replace")
    raise CrispError(Code.UNKNOWN, text)


# -- port-forward ----------------------------------------------------------------------------------------------------


async def forward_ports(
    url: str,
    ports: Sequence[tuple[int, int]],
    *,
    address: str = "127.0.0.1",
    certificate: str = "",
    on_listening: Callable[[int, int], None] = lambda _local, _remote: None,
    on_error: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> None:
    """Listen on local ports and carry each connection to its port in the pod, until cancelled.

    `ports` are pairs of local port (0: any) and port in the pod. Raises UNAVAILABLE when the connection is lost.
    """
    session, _ = await connect(url, (portforward.PROTOCOL,), certificate)
    watcher = asyncio.create_task(session.watch())
    requests = itertools.count()
    loop = asyncio.get_running_loop()
    tasks = {watcher}
    try:
        for local, remote in ports:
            listener = _listen(address, local)
            on_listening(listener.getsockname()[1], remote)
            tasks.add(loop.create_task(_accept(session, listener, remote, requests, on_error)))
        await watcher
        raise CrispError(Code.UNAVAILABLE, "the connection was lost")
    finally:
        session.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _listen(address: str, port: int) -> socket.socket:
    try:
        listener = socket.create_server(
            (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET, reuse_port=False
        )
    except OSError as error:
        raise CrispError(Code.UNAVAILABLE, f"cannot listen on {address} port {port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


async def _accept(
    session: SpdySession, listener: socket.socket, port: int, requests: Iterator[int], on_error: Callable[[str], None]
) -> None:
    loop = asyncio.get_running_loop()
    with listener:
        async with asyncio.TaskGroup() as connections:
            while True:
                connection, _ = await loop.sock_accept(listener)
                connections.create_task(_carry(session, connection, port, str(next(requests)), on_error))


async def _carry(
    session: SpdySession, connection: socket.socket, port: int, request: str, on_error: Callable[[str], None]
) -> None:
    """One connection's life."""
    headers = {"port": str(port), "requestid": request}
    with connection:
        connection.setblocking(False)
        try:
            error = await session.open({**headers, "streamtype": "error"})
            error.end()
            data = await session.open({**headers, "streamtype": "data"})
            upward = asyncio.create_task(_upward(connection.fileno(), data))
            try:
                while (chunk := await data.read()) and await write_fd(connection.fileno(), chunk):
                    pass
            finally:
                upward.cancel()
                await asyncio.gather(upward, return_exceptions=True)
            data.reset()
            if message := await _all(error):
                on_error(message.decode(errors="replace"))
        except StreamResetError:
            on_error(f"the server refused the connection to port {port}")
        except ConnectionLostError:
            return


async def _upward(fd: int, data: Stream) -> None:
    with contextlib.suppress(StreamResetError, ConnectionLostError):
        while chunk := await read_fd(fd):
            await data.write(chunk)
        data.end()
