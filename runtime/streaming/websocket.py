"""Kubernetes' channels over WebSocket (RFC 6455) without I/O.

Each message belongs to one channel. In the binary subprotocols its first byte is the channel's number; in the
base64 ones the message is text, the first character the number's digit and the rest base64. In v5 the message
255, n says that the client will send no more on channel n.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final

from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

V5: Final = "v5.channel.k8s.io"
V4: Final = "v4.channel.k8s.io"
V4_BASE64: Final = "v4.base64.channel.k8s.io"
V1: Final = "channel.k8s.io"
V1_BASE64: Final = "base64.channel.k8s.io"
TUNNEL_PREFIX: Final = "SPDY/3.1+"
"""Before the name of a protocol over SPDY: the WebSocket carries SPDY's bytes in binary messages
(KEP-4006)."""

CLOSE_SIGNAL: Final = 255

CLOSE_NORMAL: Final = 1000
CLOSE_PROTOCOL_ERROR: Final = 1002


@dataclass(frozen=True, slots=True)
class ChannelData:
    """Some bytes of a channel, not necessarily a whole message."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ChannelEnded:
    """The client will send no more on a channel (v5)."""

    channel: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer has closed, or must be: send what there is to send, and close."""

    reason: str = ""


Event = ChannelData | ChannelEnded | Closed


@dataclass(slots=True)
class _Message:
    """A message of which part has arrived."""

    channel: int = -1
    """-1: not known yet."""
    signal: bytearray = field(default_factory=bytearray)
    """What a close signal names."""
    base64: str = ""
    """Characters that do not make up three bytes yet."""


class ChannelConnection:
    """The server's end of a WebSocket with channels.

    `tunnel` carries one channel, number 0, whose messages have no channel byte.
    """

    def __init__(self, subprotocol: str) -> None:
        self._tunnel = subprotocol.startswith(TUNNEL_PREFIX)
        self._base64 = subprotocol in (V4_BASE64, V1_BASE64)
        self._has_close_signal = subprotocol == V5
        self._subprotocol = subprotocol
        self._ws = WSConnection(ConnectionType.SERVER)
        self._message = _Message()
        self._output = bytearray()

    def data_to_send(self) -> bytes:
        """Take the bytes that wait to be sent."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def accept(self, headers: list[tuple[bytes, bytes]], path: str) -> str | None:
        """Answer the opening handshake; returns what is wrong with it, or None."""
        try:
            self._ws.initiate_upgrade_connection(headers, path)
            for event in self._ws.events():
                if isinstance(event, Request):
                    accept = AcceptConnection(subprotocol=self._subprotocol or None)
                    self._output += self._ws.send(accept)
                    return None
        except (RemoteProtocolError, LocalProtocolError, ValueError) as error:  # ValueError: a Host that is no name
            return str(error)
        return "not a WebSocket handshake"

    def receive_data(self, data: bytes) -> list[Event]:
        """Process bytes from the peer. Nothing comes after a `Closed`."""
        if self._ws.state in (ConnectionState.CLOSED, ConnectionState.LOCAL_CLOSING) and not data:
            return []
        events: list[Event] = []
        try:
            self._ws.receive_data(data)
            for event in self._ws.events():
                if isinstance(event, Ping):
                    self._output += self._ws.send(event.response())
                elif isinstance(event, CloseConnection):
                    if self._ws.state is ConnectionState.REMOTE_CLOSING:
                        self._output += self._ws.send(event.response())
                    events.append(Closed())
                elif isinstance(event, BytesMessage):
                    self._on_bytes(bytes(event.data), event.message_finished, events)
                elif isinstance(event, TextMessage):
                    self._on_text(event.data, event.message_finished, events)
        except (RemoteProtocolError, LocalProtocolError, _BadMessageError) as error:
            self._fail()
            events.append(Closed(str(error)))
        return events

    def _fail(self) -> None:
        if self._ws.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            try:
                self._output += self._ws.send(CloseConnection(code=CLOSE_PROTOCOL_ERROR))
            except LocalProtocolError:
                pass

    def _on_bytes(self, data: bytes, finished: bool, events: list[Event]) -> None:
        if self._tunnel:
            events.append(ChannelData(0, data))
            return
        if self._base64:
            raise _BadMessageError("a binary message in a base64 subprotocol")
        message = self._message
        if message.channel < 0 and data:
            message.channel, data = data[0], data[1:]
        if message.channel == CLOSE_SIGNAL and self._has_close_signal:
            message.signal += data
            if len(message.signal) > 1 or (finished and not message.signal):
                raise _BadMessageError("a close signal is followed by one channel")
            if finished:
                events.append(ChannelEnded(message.signal[0]))
        elif data:
            events.append(ChannelData(message.channel, data))
        if finished:
            self._message = _Message()

    def _on_text(self, data: str, finished: bool, events: list[Event]) -> None:
        if not self._base64:
            raise _BadMessageError("a text message in a binary subprotocol")
        message = self._message
        if message.channel < 0 and data:
            message.channel, data = ord(data[0]) - ord("0"), data[1:]
        characters = message.base64 + data
        whole = len(characters) if finished else len(characters) // 4 * 4
        message.base64 = characters[whole:]
        try:
            decoded = base64.b64decode(characters[:whole], validate=True)
        except (binascii.Error, ValueError) as error:
            raise _BadMessageError(f"base64: {error}") from None
        if decoded:
            events.append(ChannelData(message.channel, decoded))
        if finished:
            self._message = _Message()

    def send(self, channel: int, data: bytes) -> None:
        """Send a message on a channel; nothing happens once the connection is closing."""
        if self._ws.state is not ConnectionState.OPEN:
            return
        if self._tunnel:
            self._output += self._ws.send(BytesMessage(data=data))
        elif self._base64:
            text = f"{channel}{base64.b64encode(data).decode('ascii')}"
            self._output += self._ws.send(TextMessage(data=text))
        else:
            self._output += self._ws.send(BytesMessage(data=bytes((channel,)) + data))

    def close(self, code: int = CLOSE_NORMAL) -> None:
        """Say that everything was sent."""
        if self._ws.state is ConnectionState.OPEN:
            self._output += self._ws.send(CloseConnection(code=code))


class _BadMessageError(Exception):
    pass
