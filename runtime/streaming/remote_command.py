"""Exec and attach as Kubernetes' clients know them: which streams there are, what they carry, and how it ends.

    protocol   streams                      end of a session, on the error stream
    v1, v2     error, stdin, stdout, stderr  nothing, or a text
    v3         and resize                    likewise
    v4, v5     the same                      a metav1.Status in JSON

v5 differs from v4 only on WebSocket, by its close signal. With a terminal there is no stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proto.errors import invalid
from runtime.streaming.connection import ConnectionLostError
from runtime.streaming.session import Stream, StreamResetError

SPDY_PROTOCOLS: Final = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
"""On SPDY, v1's name is this one."""

MAX_RESIZE_BYTES: Final = 1024
"""Of one resize message; `{"Width":80,"Height":24}` is one."""


FIRST_SIZE_SECONDS: Final = 0.3
"""How long a process with a terminal waits for the size with which it begins."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Which streams of a process a session is about."""

    tty: bool
    stdin: bool
    stdout: bool
    stderr: bool

    def __post_init__(self) -> None:
        if self.tty and self.stderr:
            raise invalid("tty and stderr cannot both be true: a terminal has one output")
        if not (self.stdin or self.stdout or self.stderr):
            raise invalid("one of stdin, stdout and stderr has to be true")


def expected_streams(options: StreamOptions, protocol: str) -> frozenset[str]:
    """The `streamType`s that a client of this protocol opens."""
    wanted = {
        "error": True,
        "stdin": options.stdin,
        "stdout": options.stdout,
        "stderr": options.stderr,
        "resize": options.tty and has_resize(protocol),
    }
    return frozenset(name for name, is_wanted in wanted.items() if is_wanted)


def has_resize(protocol: str) -> bool:
    """Whether clients of a protocol over SPDY send the terminal's size."""
    return protocol.startswith(("v3.", "v4.", "v5."))


def has_status(protocol: str) -> bool:
    """Whether clients of a protocol read a Status, and not a text."""
    return protocol.startswith(("v4.", "v5."))


@dataclass(slots=True)
class Streams:
    """The streams of one session."""

    error: Stream
    stdin: Stream | None = None
    stdout: Stream | None = None
    stderr: Stream | None = None
    resize: Stream | None = None


def exit_message(protocol: str, code: int) -> bytes:
    """What goes to the error stream when the process has ended with this exit code."""
    if code == 0:
        return json.dumps({"metadata": {}, "status": "Success"}).encode() if has_status(protocol) else b""
    text = f"command terminated with non-zero exit code: exit status {code}"
    if not has_status(protocol):
        return text.encode()
    status = {
        "metadata": {},
        "status": "Failure",
        "message": text,
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
    return json.dumps(status).encode()


def failure_message(protocol: str, text: str) -> bytes:
    """What goes to the error stream when there is no process, or it was lost."""
    if not has_status(protocol):
        return text.encode()
    status = {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {text}",
        "reason": "InternalError",
        "details": {"causes": [{"message": text}]},
        "code": 500,
    }
    return json.dumps(status).encode()


class ResizeDecoder:
    """Splits what arrives on the resize stream into terminal sizes.

    The clients' Go encoder writes one JSON object after the other, a line each; over SPDY they may be cut anywhere.
    """

    def __init__(self) -> None:
        self._rest = ""
        self._decoder = json.JSONDecoder()

    def receive_data(self, data: bytes) -> list[tuple[int, int]]:
        """Width and height in characters, of each complete message. What is none is dropped."""
        rest = (self._rest + data.decode("utf-8", "replace")).lstrip()
        sizes = []
        try:
            while rest:
                value, end = self._decoder.raw_decode(rest)
                rest = rest[end:].lstrip()
                if (size := _size(value)) is not None:
                    sizes.append(size)
        except (ValueError, RecursionError):
            if len(rest) > MAX_RESIZE_BYTES:
                rest = ""
        self._rest = rest
        return sizes


class TerminalSizes:
    """The sizes that a client sends for its terminal, in their order, until its stream ends."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream
        self._decoder = ResizeDecoder()
        self._known: list[tuple[int, int]] = []

    async def first(self) -> tuple[int, int] | None:
        """Width and height in characters with which the terminal begins; None if the client does not say it soon.

        Clients send it as soon as the streams are there. A process that starts before it sees a terminal of 0 by 0.
        """
        try:
            async with asyncio.timeout(FIRST_SIZE_SECONDS):
                while not self._known and await self._receive():
                    continue
        except (TimeoutError, ConnectionLostError, StreamResetError):
            return None
        return self._known.pop() if self._known else None

    async def follow(self, resize: Callable[[int, int], None]) -> None:
        """Call `resize` with each size that comes."""
        with contextlib.suppress(ConnectionLostError, StreamResetError):
            while await self._receive():
                for width, height in self._known:
                    resize(width, height)
                self._known.clear()

    async def _receive(self) -> bool:
        data = await self._stream.read() if self._stream is not None else b""
        self._known += self._decoder.receive_data(data)
        return bool(data)


def _size(value: object) -> tuple[int, int] | None:
    if not isinstance(value, dict):
        return None
    fields = {str(name).lower(): number for name, number in value.items()}
    width, height = fields.get("width"), fields.get("height")
    if isinstance(width, int) and isinstance(height, int) and 0 < width < 65536 and 0 < height < 65536:
        return width, height
    return None
