from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.streaming import spdy
from runtime.streaming.spdy import (
    DataReceived,
    Failed,
    GoneAway,
    Pong,
    ResetStatus,
    SpdyConnection,
    StreamAnswered,
    StreamEnded,
    StreamOpened,
    StreamReset,
)
from runtime.streaming.spdy_headers import HeaderEncoder


def frame(kind: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack("!II", 0x80030000 | kind, flags << 24 | len(payload)) + payload


def data(number: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack("!II", number, flags << 24 | len(payload)) + payload


class Peer:
    """Encodes what a client would send, with its own header context."""

    def __init__(self) -> None:
        self._encoder = HeaderEncoder()

    def syn(self, number: int, flags: int = 0, **headers: str) -> bytes:
        return frame(1, struct.pack("!IIH", number, 0, 0) + self._encoder.encode(headers), flags)

    def reply(self, number: int, flags: int = 0) -> bytes:
        return frame(2, struct.pack("!I", number) + self._encoder.encode({}), flags)

    def headers(self, number: int, flags: int = 0) -> bytes:
        return frame(8, struct.pack("!I", number) + self._encoder.encode({"x": "y"}), flags)


def opened(peer: Peer, number: int = 1) -> SpdyConnection:
    server = SpdyConnection(is_server=True)
    assert server.receive_data(peer.syn(number, streamtype="stdin")) == [StreamOpened(number, {"streamtype": "stdin"})]
    server.reply(number)
    server.data_to_send()
    return server


def failure(events: list[spdy.Event]) -> str:
    assert isinstance(events[-1], Failed), events
    return events[-1].reason


def resets(server: SpdyConnection) -> list[tuple[int, int]]:
    """Stream and status of all RST_STREAM frames that wait to be sent."""
    output, found = server.data_to_send(), []
    while output:
        first, second = struct.unpack_from("!II", output)
        length = second & 0xFFFFFF
        if first == 0x80030003:
            found.append(struct.unpack_from("!II", output, 8))
        output = output[8 + length :]
    return found


def test_a_stream_from_its_opening_to_its_end() -> None:
    peer = Peer()
    server = opened(peer)
    assert server.receive_data(data(1, b"abc") + data(1, b"", 1)) == [DataReceived(1, b"abc"), StreamEnded(1)]
    server.send(1, b"answer")
    server.send(1, b"", end=True)
    assert server.data_to_send() == data(1, b"answer") + data(1, b"", 1)
    server.send(1, b"too late")
    server.reset(1)
    assert server.data_to_send() == b""


def test_replies_come_before_data() -> None:
    server = SpdyConnection(is_server=True)
    server.receive_data(Peer().syn(1, streamtype="error"))
    server.reply(1)
    server.reply(1)
    reply = server.data_to_send()
    assert struct.unpack_from("!III", reply) == (0x80030002, len(reply) - 8, 1)


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_captured_bytes_in_pieces(step: int) -> None:
    peer = Peer()
    wire = peer.syn(1, streamtype="error") + peer.syn(3, streamtype="stdin") + frame(6, struct.pack("!I", 1))
    wire += data(3, b"hello") + peer.headers(3) + data(3, b"", 1) + frame(7, struct.pack("!II", 0, 0))
    server = SpdyConnection(is_server=True)
    events = [event for at in range(0, len(wire), step) for event in server.receive_data(wire[at : at + step])]
    received = b"".join(event.data for event in events if isinstance(event, DataReceived))
    assert received == b"hello"
    assert [event for event in events if not isinstance(event, DataReceived)] == [
        StreamOpened(1, {"streamtype": "error"}),
        StreamOpened(3, {"streamtype": "stdin"}),
        StreamEnded(3),
        GoneAway(),
    ]
    assert server.data_to_send() == frame(6, struct.pack("!I", 1))


def test_nothing_stalls_at_the_window() -> None:
    server = opened(Peer())
    for _ in range(100):
        server.send(1, bytes(65536))
    assert len(server.data_to_send()) == 100 * (65536 + 8)


def test_consumed_bytes_are_reported_for_stream_and_connection() -> None:
    server = opened(Peer())
    server.receive_data(data(1, bytes(spdy.WINDOW_UPDATE_BYTES)))
    server.consumed(1, spdy.WINDOW_UPDATE_BYTES - 1)
    assert server.data_to_send() == b""
    server.consumed(1, 1)
    update = spdy.WINDOW_UPDATE_BYTES
    assert server.data_to_send() == frame(9, struct.pack("!II", 0, update)) + frame(9, struct.pack("!II", 1, update))


def test_dropped_bytes_reopen_the_connections_window() -> None:
    server = opened(Peer())
    server.reset(1)
    server.data_to_send()
    assert server.receive_data(data(1, bytes(spdy.WINDOW_UPDATE_BYTES))) == []
    assert server.data_to_send() == frame(9, struct.pack("!II", 0, spdy.WINDOW_UPDATE_BYTES))


def test_resets() -> None:
    server = opened(Peer())
    assert server.receive_data(frame(3, struct.pack("!II", 1, 5))) == [StreamReset(1, 5)]
    assert server.receive_data(frame(3, struct.pack("!II", 1, 5))) == []
    assert server.receive_data(data(1, b"under way")) == []
    assert resets(server) == []


def test_data_on_streams_that_never_were_or_have_ended() -> None:
    server = opened(Peer())
    server.receive_data(data(1, b"", 1) + data(1, b"more") + data(7, b"what"))
    assert resets(server) == [(1, ResetStatus.STREAM_ALREADY_CLOSED), (7, ResetStatus.INVALID_STREAM)]


def test_both_ends_count_pings_by_parity() -> None:
    server = SpdyConnection(is_server=True)
    assert server.ping() == 2
    server.data_to_send()
    assert server.receive_data(frame(6, struct.pack("!I", 2))) == [Pong(2)]
    assert server.data_to_send() == b""


def test_client_and_server_agree() -> None:
    client, server = SpdyConnection(is_server=False), SpdyConnection(is_server=True)
    first, second = client.open({"streamType": "error"}), client.open({"streamType": "data", "port": "80"})
    assert (first, second) == (1, 3)
    assert server.receive_data(client.data_to_send()) == [
        StreamOpened(1, {"streamtype": "error"}),
        StreamOpened(3, {"streamtype": "data", "port": "80"}),
    ]
    server.reply(1)
    server.reset(3, ResetStatus.REFUSED_STREAM)
    assert client.receive_data(server.data_to_send()) == [StreamAnswered(1, {}), StreamReset(3, ResetStatus.REFUSED_STREAM)]


def test_fin_flags_on_replies_and_headers() -> None:
    peer, client = Peer(), SpdyConnection(is_server=False)
    client.open({})
    client.open({})
    assert client.receive_data(peer.reply(1, 1)) == [StreamAnswered(1, {}), StreamEnded(1)]
    client.receive_data(peer.reply(3))
    assert client.receive_data(peer.headers(3, 1)) == [StreamEnded(3)]
    assert SpdyConnection(is_server=True).receive_data(Peer().syn(1, 1)) == [StreamOpened(1, {}), StreamEnded(1)]


def test_a_second_reply_is_an_error_of_the_stream() -> None:
    peer, client = Peer(), SpdyConnection(is_server=False)
    client.open({})
    client.receive_data(peer.reply(1))
    assert client.receive_data(peer.reply(1)) == [StreamReset(1, ResetStatus.STREAM_IN_USE)]


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (data(0, b"x"), "data on stream 0"),
        (struct.pack("!II", 0x80020001, 0), "SPDY version 2"),
        (b"GET / HTTP/1.1\r\n", None),
        (frame(1, b"123"), "SYN_STREAM of 3 bytes"),
        (frame(1, bytes(8)), "SYN_STREAM of 8 bytes"),
        (frame(1, struct.pack("!IIH", 1, 0, 0) + b"no zlib"), "header block"),
        (struct.pack("!II", 0x80030001, spdy.MAX_CONTROL_BYTES + 1), "a control frame of"),
        (Peer().syn(2), "SYN_STREAM with id 2 after 0"),
        (frame(6, b""), "PING of 0 bytes"),
        (frame(3, bytes(7)), "RST_STREAM of 7 bytes"),
        (frame(7, b""), "GOAWAY of 0 bytes"),
    ],
)
def test_violations_end_the_connection_with_goaway(wire: bytes, reason: str | None) -> None:
    server = SpdyConnection(is_server=True)
    events = server.receive_data(wire)
    if reason is None:  # "GET " reads as data for some stream: that is refused when it comes
        assert events == []
        return
    assert reason in failure(events)
    assert server.data_to_send().endswith(frame(7, struct.pack("!II", 0, 1)))
    assert server.receive_data(Peer().syn(1)) == []


def test_stream_ids_rise() -> None:
    peer = Peer()
    server = opened(peer, 5)
    assert "id 3 after 5" in failure(server.receive_data(peer.syn(3)))


def test_the_number_of_streams_is_bounded() -> None:
    peer, server = Peer(), SpdyConnection(is_server=True)
    wire = b"".join(peer.syn(number) for number in range(1, 2 * spdy.MAX_STREAMS + 4, 2))
    assert len(server.receive_data(wire)) == spdy.MAX_STREAMS
    assert [status for _, status in resets(server)] == [ResetStatus.REFUSED_STREAM] * 2


def test_unknown_frames_settings_and_windows_are_ignored() -> None:
    server = SpdyConnection(is_server=True)
    wire = frame(4, struct.pack("!III", 1, 7, 65536)) + frame(9, struct.pack("!II", 0, 5)) + frame(10, b"x") + frame(99, b"")
    assert server.receive_data(wire) == []
    assert server.data_to_send() == b""


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_any_bytes_end_in_events(chunks: list[bytes]) -> None:
    server = SpdyConnection(is_server=True)
    for chunk in chunks:
        for event in server.receive_data(chunk):
            assert isinstance(event, spdy.Event)


Step = tuple[str, int, bytes]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("open"), st.just(0), st.just(b"")),
            st.tuples(st.just("send"), st.integers(0, 5), st.binary(max_size=50)),
            st.tuples(st.just("end"), st.integers(0, 5), st.binary(max_size=50)),
            st.tuples(st.just("reset"), st.integers(0, 5), st.just(b"")),
        ),
        max_size=40,
    ),
    st.integers(1, 64),
)
def test_what_one_end_sends_the_other_receives(steps: list[Step], cut: int) -> None:
    """Over all orders of opening, sending, ending and resetting, however the bytes are cut."""
    client, server = SpdyConnection(is_server=False), SpdyConnection(is_server=True)
    sent: dict[int, bytes] = {}
    open_streams: dict[int, bool] = {}
    received: dict[int, bytes] = {}
    wire = b""
    for verb, index, payload in steps:
        number = 2 * index + 1
        if verb == "open":
            number = client.open({"streamtype": "data"})
            sent[number], open_streams[number] = b"", True
        elif open_streams.get(number):
            if verb == "reset":
                client.reset(number)
            else:
                client.send(number, payload, end=verb == "end")
                sent[number] += payload
            open_streams[number] = verb == "send"
    wire = client.data_to_send()
    for at in range(0, len(wire), cut):
        for event in server.receive_data(wire[at : at + cut]):
            assert not isinstance(event, Failed)
            if isinstance(event, StreamOpened):
                received[event.stream] = b""
            elif isinstance(event, DataReceived):
                received[event.stream] += event.data
    assert received == sent
