"""Fuzz targets of codecs that speak with a peer: whatever comes in, they answer with events, never with an exception."""

from __future__ import annotations

from collections.abc import Callable

from proto.grpc_client import Connection, Ended, Event
from runtime.streaming import spdy, websocket
from runtime.streaming.http_upgrade import UpgradeDecoder, UpgradeRequest, negotiate
from runtime.streaming.remote_command import ResizeDecoder
from runtime.streaming.spdy import SpdyConnection, StreamOpened

HANDSHAKE = [
    (b"host", b"x"),
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
]


def fuzz_spdy(data: bytes) -> None:
    """A server that agrees to every other stream and answers on it; the input is cut by its first byte."""
    server, step = SpdyConnection(is_server=True), (data[0] if data else 0) + 1
    for at in range(1, len(data), step):
        for event in server.receive_data(data[at : at + step]):
            if isinstance(event, StreamOpened) and event.stream % 4 == 1:
                server.reply(event.stream)
                server.send(event.stream, b"answer", end=event.stream % 8 == 1)
            elif isinstance(event, spdy.DataReceived):
                server.consumed(event.stream, len(event.data))
        assert len(server.data_to_send()) <= 64 * (step + 16)


def fuzz_websocket(data: bytes) -> None:
    """All subprotocols, chosen by the first byte."""
    protocols = (websocket.V5, websocket.V4, websocket.V4_BASE64, "SPDY/3.1+portforward.k8s.io")
    protocol = protocols[(data[0] if data else 0) % len(protocols)]
    codec = websocket.ChannelConnection(protocol)
    assert codec.accept([*HANDSHAKE, (b"sec-websocket-protocol", protocol.encode())], "/exec/t") is None
    for at in range(1, len(data), 16):
        for event in codec.receive_data(data[at : at + 16]):
            if isinstance(event, websocket.ChannelData):
                codec.send(1, event.data)
    codec.close()
    codec.data_to_send()


def fuzz_http(data: bytes) -> None:
    """The request."""
    result = UpgradeDecoder().receive_data(data)
    if isinstance(result, UpgradeRequest):
        outcome = negotiate(result, (websocket.V5, ""))
        if result.upgrade.value == "websocket" and isinstance(outcome, str):
            websocket.ChannelConnection(outcome).accept(result.headers, result.path)
    elif result is not None:
        result.encode()


def fuzz_resize(data: bytes) -> None:
    """The resize stream."""
    decoder = ResizeDecoder()
    for at in range(0, len(data), 7):
        for width, height in decoder.receive_data(data[at : at + 7]):
            assert 0 < width < 65536 and 0 < height < 65536


def fuzz_grpc(data: bytes) -> None:
    """A server's answer to three calls, cut by the first byte or not at all: it comes to the same, and each call ends."""
    step, told = (data[0] if data else 0) + 1, list[list[object]]()
    for cut in (step, len(data) + 1):
        connection, events = Connection(1000), list[Event]()
        for _ in range(3):
            connection.call("/a.B/C", b"request")
        for at in range(1, len(data), cut):
            events += connection.receive(data[at : at + cut])
        events += connection.receive(b"")
        assert connection.closed
        assert sorted(event.stream for event in events if isinstance(event, Ended)) == [1, 3, 5]
        told.append([(event.stream, event.code if isinstance(event, Ended) else event.data) for event in events])
    assert told[0] == told[1]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "spdy": fuzz_spdy,
    "websocket": fuzz_websocket,
    "http": fuzz_http,
    "resize": fuzz_resize,
    "grpc": fuzz_grpc,
}
