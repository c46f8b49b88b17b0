from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage

from runtime.streaming import websocket
from runtime.streaming.websocket import ChannelConnection, ChannelData, ChannelEnded, Closed, Event


class Pair:
    """A client's WebSocket and the codec, shaken hands."""

    def __init__(self, subprotocol: str) -> None:
        self.client = WSConnection(ConnectionType.CLIENT)
        head = self.client.send(Request(host="x", target="/exec/t", subprotocols=[subprotocol] if subprotocol else []))
        lines = head.split(b"\r\n")[1:]
        headers = [tuple(line.split(b": ", 1)) for line in lines if line]
        self.server = ChannelConnection(subprotocol)
        assert self.server.accept(headers, "/exec/t") is None  # type: ignore[arg-type]
        self.client.receive_data(self.server.data_to_send())
        [accepted] = self.client.events()
        assert isinstance(accepted, AcceptConnection)
        assert accepted.subprotocol == (subprotocol or None)

    def receive(self, wire: bytes, step: int = 1 << 20) -> list[Event]:
        return [event for at in range(0, len(wire), step) for event in self.server.receive_data(wire[at : at + step])]

    def send(self, *messages: bytes | str) -> bytes:
        kinds = {bytes: BytesMessage, str: TextMessage}
        return b"".join(self.client.send(kinds[type(message)](data=message)) for message in messages)

    def replies(self) -> list[object]:
        self.client.receive_data(self.server.data_to_send())
        return list(self.client.events())


def joined(events: list[Event]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for event in events:
        assert isinstance(event, ChannelData)
        found[event.channel] = found.get(event.channel, b"") + event.data
    return found


@given(st.lists(st.tuples(st.integers(0, 4), st.binary(min_size=1, max_size=70000)), max_size=4), st.integers(1, 5000))
def test_binary_channels_however_cut(messages: list[tuple[int, bytes]], step: int) -> None:
    pair = Pair(websocket.V4)
    wire = pair.send(*(bytes((channel,)) + data for channel, data in messages))
    expected: dict[int, bytes] = {}
    for channel, data in messages:
        expected[channel] = expected.get(channel, b"") + data
    assert joined(pair.receive(wire, step)) == expected


@given(st.lists(st.tuples(st.integers(0, 4), st.binary(min_size=1, max_size=3000)), max_size=4), st.integers(1, 700))
def test_base64_channels_however_cut(messages: list[tuple[int, bytes]], step: int) -> None:
    pair = Pair(websocket.V4_BASE64)
    wire = pair.send(*(f"{channel}{base64.b64encode(data).decode()}" for channel, data in messages))
    expected: dict[int, bytes] = {}
    for channel, data in messages:
        expected[channel] = expected.get(channel, b"") + data
    assert joined(pair.receive(wire, step)) == expected


def test_what_the_server_sends() -> None:
    binary, text, tunnel = Pair(websocket.V5), Pair(websocket.V1_BASE64), Pair("SPDY/3.1+portforward.k8s.io")
    for pair in (binary, text, tunnel):
        pair.server.send(2, b"data")
    assert [event.data for event in binary.replies()] == [b"\2data"]  # type: ignore[attr-defined]
    assert [event.data for event in text.replies()] == ["2ZGF0YQ=="]  # type: ignore[attr-defined]
    assert [event.data for event in tunnel.replies()] == [b"data"]  # type: ignore[attr-defined]


def test_the_close_signal_is_v5s() -> None:
    pair = Pair(websocket.V5)
    assert pair.receive(pair.send(b"\0input", b"\xff\0"), step=1)[-1] == ChannelEnded(0)
    older = Pair(websocket.V4)
    assert older.receive(older.send(b"\xff\0")) == [ChannelData(255, b"\0")]


@pytest.mark.parametrize("message", [b"\xff", b"\xff\0\0"])
def test_bad_close_signals(message: bytes) -> None:
    pair = Pair(websocket.V5)
    [event] = pair.receive(pair.send(message))
    assert isinstance(event, Closed)
    [close] = pair.replies()
    assert isinstance(close, CloseConnection)
    assert close.code == websocket.CLOSE_PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("subprotocol", "message"), [(websocket.V4, "text"), (websocket.V4_BASE64, b"\0x"), (websocket.V4_BASE64, "0***")]
)
def test_messages_of_the_wrong_kind(subprotocol: str, message: bytes | str) -> None:
    pair = Pair(subprotocol)
    [event] = pair.receive(pair.send(message))
    assert isinstance(event, Closed)
    assert event.reason


def test_empty_messages_are_nothing() -> None:
    pair = Pair(websocket.V5)
    assert pair.receive(pair.send(b"", b"\0", b"\1")) == []


def test_pings_are_answered_and_closes_returned() -> None:
    pair = Pair(websocket.V5)
    assert pair.receive(pair.client.send(Ping(payload=b"alive"))) == []
    [pong] = pair.replies()
    assert isinstance(pong, Pong)
    assert pong.payload == b"alive"
    assert pair.receive(pair.client.send(CloseConnection(code=1000))) == [Closed()]
    assert isinstance(pair.replies()[0], CloseConnection)
    pair.server.send(1, b"too late")
    assert pair.server.data_to_send() == b""


def test_a_request_that_is_no_handshake() -> None:
    assert ChannelConnection(websocket.V5).accept([(b"host", b"\x84"), (b"upgrade", b"websocket")], "/") is not None
    assert ChannelConnection(websocket.V5).accept([(b"host", b"x"), (b"upgrade", b"websocket")], "/") is not None


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_any_bytes_end_in_events(chunks: list[bytes]) -> None:
    pair = Pair(websocket.V5)
    for chunk in chunks:
        pair.server.receive_data(chunk)
