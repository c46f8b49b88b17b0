from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import Code, CrispError
from runtime.streaming.remote_command import (
    MAX_RESIZE_BYTES,
    ResizeDecoder,
    StreamOptions,
    exit_message,
    expected_streams,
    failure_message,
)

V4, V3, V2, V1 = "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"
EVERYTHING = StreamOptions(tty=False, stdin=True, stdout=True, stderr=True)
TERMINAL = StreamOptions(tty=True, stdin=True, stdout=True, stderr=False)


def test_impossible_streams() -> None:
    for options in ((True, True, True, True), (False, False, False, False), (True, False, False, False)):
        with pytest.raises(CrispError) as caught:
            StreamOptions(*options)
        assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("options", "protocol", "expected"),
    [
        (EVERYTHING, V4, {"error", "stdin", "stdout", "stderr"}),
        (TERMINAL, V4, {"error", "stdin", "stdout", "resize"}),
        (TERMINAL, V3, {"error", "stdin", "stdout", "resize"}),
        (TERMINAL, V2, {"error", "stdin", "stdout"}),
        (TERMINAL, V1, {"error", "stdin", "stdout"}),
        (StreamOptions(False, False, True, False), V4, {"error", "stdout"}),
    ],
)
def test_expected_streams(options: StreamOptions, protocol: str, expected: set[str]) -> None:
    assert expected_streams(options, protocol) == expected


def test_ends() -> None:
    assert json.loads(exit_message(V4, 0)) == {"metadata": {}, "status": "Success"}
    assert json.loads(exit_message(V4, 137))["details"] == {"causes": [{"reason": "ExitCode", "message": "137"}]}
    assert json.loads(failure_message(V4, "why"))["message"] == "Internal error occurred: why"
    assert exit_message(V1, 0) == b""
    assert exit_message(V3, 2) == b"command terminated with non-zero exit code: exit status 2"
    assert failure_message(V2, "why") == b"why"


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535)), max_size=10), st.integers(1, 30))
def test_sizes_however_cut(sizes: list[tuple[int, int]], step: int) -> None:
    wire = b"".join(json.dumps({"Width": w, "Height": h}).encode() + b"\n" for w, h in sizes)
    decoder = ResizeDecoder()
    assert [size for at in range(0, len(wire), step) for size in decoder.receive_data(wire[at : at + step])] == sizes


@pytest.mark.parametrize(
    "message", [b"7", b'"x"', b'{"Width":0,"Height":5}', b'{"Width":70000,"Height":5}', b'{"Width":"8"}', b"[]"]
)
def test_what_is_no_size_is_dropped(message: bytes) -> None:
    assert ResizeDecoder().receive_data(message + b'\n{"width":80,"height":24}') == [(80, 24)]


def test_garbage_is_bounded() -> None:
    decoder = ResizeDecoder()
    decoder.receive_data(b"{" * (MAX_RESIZE_BYTES + 1))
    assert decoder.receive_data(b'{"Width":80,"Height":24}') == [(80, 24)]
    decoder.receive_data(b"[" * 100_000)
    assert decoder.receive_data(b'{"Width":81,"Height":24}') == [(81, 24)]
