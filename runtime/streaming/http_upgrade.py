"""The HTTP/1.1 request that opens a session, without I/O: bytes in, a request out, and the answers to it.

GET|POST /{exec,attach,portforward}/{token}
Connection: Upgrade
Upgrade: SPDY/3.1                               or websocket
X-Stream-Protocol-Version: v4.channel.k8s.io    what the client speaks over SPDY, best first; may come
several times
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

MAX_REQUEST_BYTES: Final = 32 * 1024

PROTOCOL_HEADER: Final = "X-Stream-Protocol-Version"
ACCEPTED_HEADER: Final = "X-Accepted-Stream-Protocol-Versions"
SPDY: Final = "SPDY/3.1"


class Upgrade(enum.Enum):
    """What a client wants to speak."""

    SPDY = "spdy"
    WEBSOCKET = "websocket"


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """A client's request."""

    verb: str
    """exec, attach or portforward."""
    token: str
    upgrade: Upgrade
    protocols: tuple[str, ...]
    """What it speaks, best first."""
    headers: list[tuple[bytes, bytes]]
    path: str
    rest: bytes
    """What came after the request."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """What to send to a client before its connection is closed."""

    status: HTTPStatus
    reason: str
    headers: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """The response."""
        body = self.reason.encode() + b"\n"
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class UpgradeDecoder:
    """Reads the one request of a connection."""

    def __init__(self) -> None:
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST_BYTES)
        self._request: h11.Request | None = None

    def receive_data(self, data: bytes) -> UpgradeRequest | Rejection | None:
        """The request when it is complete, what to answer when it is bad, None while it is neither."""
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if event in (h11.NEED_DATA, h11.PAUSED):
                    return None
                if isinstance(event, h11.Request):
                    self._request = event
                elif isinstance(event, h11.Data):
                    return Rejection(HTTPStatus.BAD_REQUEST, "the request must have no body")
                elif isinstance(event, h11.EndOfMessage) and self._request is not None:
                    return _understand(self._request, self._http.trailing_data[0])
                else:
                    return Rejection(HTTPStatus.BAD_REQUEST, "the request is incomplete")
        except h11.RemoteProtocolError as error:
            return Rejection(HTTPStatus(error.error_status_hint), str(error))


def _understand(request: h11.Request, rest: bytes) -> UpgradeRequest | Rejection:
    if request.http_version != b"1.1":
        return Rejection(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "use HTTP/1.1")
    if request.method not in (b"GET", b"POST"):
        return Rejection(HTTPStatus.METHOD_NOT_ALLOWED, "use GET or POST", (("Allow", "GET, POST"),))
    path = request.target.decode("ascii", "replace")
    parts = path.partition("?")[0].split("/")
    if len(parts) != 3 or parts[0] or parts[1] not in ("exec", "attach", "portforward"):
        return Rejection(HTTPStatus.NOT_FOUND, "no such page")
    headers = [(bytes(name), bytes(value)) for name, value in request.headers]
    tokens = {token.lower() for token in _values(headers, "upgrade")}
    if not any(token.lower() == "upgrade" for token in _values(headers, "connection")):
        tokens = set()
    if SPDY.lower() in tokens:
        upgrade = Upgrade.SPDY
        protocols = _values(headers, PROTOCOL_HEADER)
    elif "websocket" in tokens:
        upgrade = Upgrade.WEBSOCKET
        protocols = _values(headers, "Sec-WebSocket-Protocol")
    else:
        return Rejection(
            HTTPStatus.BAD_REQUEST, f"the request must ask for an upgrade to {SPDY} or websocket", (("Upgrade", SPDY),)
        )
    return UpgradeRequest(parts[1], parts[2], upgrade, tuple(protocols), headers, path, rest)


def _values(headers: Sequence[tuple[bytes, bytes]], name: str) -> list[str]:
    """A header's comma-separated values, over all its occurrences."""
    wanted = name.lower().encode()
    text = ",".join(value.decode("latin-1") for key, value in headers if key.lower() == wanted)
    return [value for part in text.split(",") if (value := part.strip())]


def negotiate(request: UpgradeRequest, ours: Sequence[str]) -> str | Rejection:
    """The client's best protocol that is one of ours.

    Over SPDY a client has to name one; over WebSocket it may name none, which stands for "".
    """
    theirs = request.protocols
    if request.upgrade is Upgrade.SPDY and not theirs:
        return Rejection(HTTPStatus.BAD_REQUEST, f"unable to upgrade: header {PROTOCOL_HEADER} is missing")
    for protocol in theirs or ("",):
        if protocol in ours:
            return protocol
    return Rejection(
        HTTPStatus.FORBIDDEN,
        f"unable to upgrade: unable to negotiate protocol: client supports {list(theirs)}, server accepts {list(ours)}",
        tuple((ACCEPTED_HEADER, protocol) for protocol in ours),
    )


def switch_to_spdy(protocol: str) -> bytes:
    """The response after which the connection speaks SPDY."""
    lines = ("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", f"Upgrade: {SPDY}", f"{PROTOCOL_HEADER}: {protocol}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n"
