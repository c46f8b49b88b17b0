"""ttrpc and NRI's multiplexer: any bytes, cut anywhere, give events and never an exception."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto import nri_mux, ttrpc
from proto import ttrpc_messages_pb2 as messages

PAYLOADS = st.binary(max_size=200)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes, cut at these places."""
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


def frame(stream: int, kind: int, data: bytes, flags: int = 0, length: int | None = None) -> bytes:
    """A frame, written here by the drawing alone."""
    return struct.pack(">IIBB", len(data) if length is None else length, stream, kind, flags) + data


@given(
    st.lists(st.tuples(st.integers(1, 2**32 - 1), st.integers(0, 255), PAYLOADS, st.integers(0, 255))),
    st.lists(st.integers(0)),
)
def test_frames_come_out_as_they_went_in(frames: list[tuple[int, int, bytes, int]], cuts: list[int]) -> None:
    decoder = ttrpc.FrameDecoder()
    data = b"".join(ttrpc.encode(*one) for one in frames)
    assert data == b"".join(frame(*one) for one in frames)
    found = [f for piece in pieces(data, cuts) for f in decoder.receive(piece)]
    assert [(f.stream, f.kind, f.data, f.flags) for f in found] == frames
    assert decoder.failure == ""


@given(st.binary(max_size=400), st.lists(st.integers(0)))
def test_any_bytes_are_taken(data: bytes, cuts: list[int]) -> None:
    caller, callee, demultiplexer = ttrpc.Caller(), ttrpc.Callee(), nri_mux.Demultiplexer()
    for _ in range(4):
        caller.call("service", "method", b"")
    for piece in pieces(data, cuts):
        assert all(reply.stream in (1, 3, 5, 7) for reply in caller.receive(piece))
        assert all(call.stream % 2 for call in callee.receive(piece))
        callee.refusals()
        assert all(connection in (nri_mux.PLUGIN, nri_mux.RUNTIME) for connection, _ in demultiplexer.receive(piece))


@given(st.lists(st.tuples(st.text(max_size=20), PAYLOADS, st.booleans()), min_size=1), st.lists(st.integers(0)))
def test_calls_are_answered(asked: list[tuple[str, bytes, bool]], cuts: list[int]) -> None:
    caller, callee = ttrpc.Caller(), ttrpc.Callee()
    sent = [caller.call("the.Service", method, payload, 1.5) for method, payload, _ in asked]
    assert [stream for stream, _ in sent] == list(range(1, 2 * len(asked), 2))
    calls = [call for piece in pieces(b"".join(data for _, data in sent), cuts) for call in callee.receive(piece)]
    assert [(c.service, c.method, c.payload, c.timeout) for c in calls] == [("the.Service", m, p, 1.5) for m, p, _ in asked]
    assert callee.unanswered == len(asked)
    answers = [
        callee.answer(call.stream, call.payload) if good else callee.refuse(call.stream, 9, "no: " + call.method)
        for call, (_, _, good) in reversed(list(zip(calls, asked, strict=True)))  # in any order
    ]
    assert callee.unanswered == 0
    replies = {r.stream: r for piece in pieces(b"".join(answers), cuts) for r in caller.receive(piece)}
    for (stream, _), (method, payload, good) in zip(sent, asked, strict=True):
        expected = ttrpc.Reply(stream, 0, "", payload) if good else ttrpc.Reply(stream, 9, "no: " + method, b"")
        assert replies[stream] == expected
    assert (caller.failure, callee.failure) == ("", "")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(1, 1, b""), id="a call where answers are expected"),
        pytest.param(frame(1, 3, b""), id="data of a stream"),
        pytest.param(frame(5, 2, b""), id="an answer to nothing"),
        pytest.param(frame(1, 2, b"\xff\xff"), id="no Response"),
        pytest.param(frame(1, 2, b"", length=1 << 24), id="no frame"),
    ],
)
def test_rubbish_ends_a_caller(data: bytes) -> None:
    caller = ttrpc.Caller()
    caller.call("service", "method", b"")
    assert caller.receive(data) == []
    assert caller.failure
    assert caller.receive(frame(1, 2, b"")) == [], "nothing after it is looked at"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(1, 2, b""), id="an answer where calls are expected"),
        pytest.param(frame(2, 1, b""), id="an even stream"),
        pytest.param(frame(3, 1, b"") + frame(1, 1, b""), id="a lower stream"),
        pytest.param(frame(3, 1, b"") + frame(3, 1, b""), id="the same stream"),
        pytest.param(frame(1, 1, b"\xff\xff"), id="no Request"),
    ],
)
def test_rubbish_ends_a_callee(data: bytes) -> None:
    callee = ttrpc.Callee()
    callee.receive(data)
    assert callee.failure
    assert callee.receive(frame(9, 1, b"")) == []


def test_one_answer_to_a_call() -> None:
    caller = ttrpc.Caller()
    caller.call("service", "method", b"")
    assert len(caller.receive(frame(1, 2, b"") + frame(1, 2, b""))) == 1
    assert caller.failure


def test_a_message_that_is_too_long_is_skipped_and_refused() -> None:
    """As the protocol's own implementation does; memory does not hold it."""
    caller, callee = ttrpc.Caller(), ttrpc.Callee()
    caller.call("service", "method", b"")
    caller.call("service", "method", b"")
    long = bytes(ttrpc.LONGEST + 1)
    [reply, after] = caller.receive(frame(1, 2, long) + frame(3, 2, b""))
    assert (reply.stream, reply.code) == (1, ttrpc.RESOURCE_EXHAUSTED)
    assert (after.stream, after.code) == (3, ttrpc.OK)
    assert callee.receive(frame(1, 1, long)) == []
    [refusal] = callee.refusals()
    assert messages.Response.FromString(refusal[10:]).status.code == ttrpc.RESOURCE_EXHAUSTED
    assert [call.stream for call in callee.receive(frame(3, 1, b""))] == [3]
    with pytest.raises(ttrpc.TooLong):
        caller.call("service", "method", long)


def test_a_stream_is_refused() -> None:
    callee = ttrpc.Callee()
    request = messages.Request(service="s", method="m").SerializeToString()
    assert callee.receive(frame(1, 1, request, flags=2)) == []
    [refusal] = callee.refusals()
    assert struct.unpack(">IIBB", refusal[:10])[1:3] == (1, 2)
    assert messages.Response.FromString(refusal[10:]).status.code == ttrpc.UNIMPLEMENTED
    assert callee.unanswered == 0


# ---- the multiplexer ----


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 77]), st.one_of(PAYLOADS, st.integers(4000, 9000).map(bytes)))),
    st.lists(st.integers(0)),
)
def test_messages_are_multiplexed(sent: list[tuple[int, bytes]], cuts: list[int]) -> None:
    demultiplexer = nri_mux.Demultiplexer()
    data = b"".join(nri_mux.encode(connection, message) for connection, message in sent)
    found = [part for piece in pieces(data, cuts) for part in demultiplexer.receive(piece)]
    for connection in (1, 2):
        expected = b"".join(message for number, message in sent if number == connection)
        assert b"".join(part for number, part in found if number == connection) == expected
    assert {number for number, _ in found} <= {1, 2}


@pytest.mark.parametrize(
    ("size", "frames"), [(0, [0]), (4096, [4096]), (4097, [4096, 1]), (4 << 20, [4096, (4 << 20) - 4096])]
)
def test_a_message_is_cut_so_that_the_peer_can_read_it(size: int, frames: list[int]) -> None:
    data, found = nri_mux.encode(1, bytes(size)), []
    while data:
        connection, length = struct.unpack(">II", data[:8])
        assert connection == 1
        found.append(length)
        data = data[8 + length :]
    assert found == frames


def test_a_frame_that_is_too_long_ends_it() -> None:
    demultiplexer = nri_mux.Demultiplexer()
    assert demultiplexer.receive(struct.pack(">II", 1, nri_mux.LONGEST)) == []
    assert not demultiplexer.failure
    demultiplexer = nri_mux.Demultiplexer()
    assert demultiplexer.receive(struct.pack(">II", 1, nri_mux.LONGEST + 1) + b"xx") == []
    assert demultiplexer.failure


def test_connections_that_there_are_not_may_carry_little() -> None:
    demultiplexer = nri_mux.Demultiplexer()
    chunk = struct.pack(">II", 3, 1 << 16) + bytes(1 << 16)
    for _ in range(16):
        assert demultiplexer.receive(chunk) == []
    assert not demultiplexer.failure
    assert demultiplexer.receive(chunk) == []
    assert demultiplexer.failure
