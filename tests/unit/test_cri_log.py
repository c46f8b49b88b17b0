"""shim/cri_log.py: what goes in comes out, in the form that the kubelet parses."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.cri_log import MAX_LINE, Clock, Formatter

NOW = 1475712849_669794202
STAMP = b"2016-10-06T00:14:09.669794202Z"
LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stdout ([PF]) (.*)", re.DOTALL)


def parse(log: bytes) -> list[tuple[bytes, bytes]]:
    """(tag, content) of each line; every line must have the form."""
    assert log == b"" or log.endswith(b"\n")
    found = []
    for line in log.split(b"\n")[:-1]:
        match = LINE.fullmatch(line)
        assert match, line
        found.append((match[1], match[2]))
    return found


def join(lines: list[tuple[bytes, bytes]]) -> bytes:
    """What was written: pieces joined, each full line with its newline."""
    return b"".join(content + (b"\n" if tag == b"F" else b"") for tag, content in lines)


def formatter(max_line: int = MAX_LINE) -> Formatter:
    return Formatter(b"stdout", Clock(), max_line)


def test_one_line() -> None:
    assert formatter().feed(b"hello\n", NOW) == STAMP + b" stdout F hello\n"


def test_stamp_has_nine_digits_and_follows_the_second() -> None:
    clock = Clock()
    assert clock.stamp(NOW) == STAMP
    assert clock.stamp(1475712850_000000001) == b"2016-10-06T00:14:10.000000001Z"


def test_empty_lines() -> None:
    assert parse(formatter().feed(b"\n\na\n\n", NOW)) == [(b"F", b""), (b"F", b""), (b"F", b"a"), (b"F", b"")]


def test_line_in_several_reads_is_one_line() -> None:
    stream = formatter()
    assert stream.feed(b"hel", NOW) == b""
    assert stream.feed(b"lo", NOW) == b""
    assert parse(stream.feed(b"\nnext", NOW)) == [(b"F", b"hello")]
    assert parse(stream.finish(NOW)) == [(b"P", b"next")]
    assert stream.finish(NOW) == b""


@pytest.mark.parametrize("length", [4, 5, 8, 9])
def test_long_line_is_split(length: int) -> None:
    text = b"abcdefghi"[:length]
    pieces = [text[start : start + 4] for start in range(0, length, 4)]
    expected = [(b"P", piece) for piece in pieces[:-1]] + [(b"F", pieces[-1])]
    assert parse(formatter(4).feed(text + b"\n", NOW)) == expected


def test_line_without_end_does_not_grow_for_ever() -> None:
    stream = formatter(4)
    out = b"".join(stream.feed(b"x", NOW) for _ in range(9))
    assert parse(out) == [(b"P", b"xxxx"), (b"P", b"xxxx")]
    assert parse(stream.feed(b"\n", NOW)) == [(b"F", b"x")]


streams = st.lists(st.sampled_from([b"a", b"\n", b"bc", b"\r\n", b"\xff\x00", b"0123456789" * 3]), max_size=60).map(b"".join)


@given(streams, st.lists(st.integers(0, 200), max_size=20), st.integers(1, 12))
def test_texts_reproduce_the_stream(data: bytes, cuts: list[int], max_line: int) -> None:
    stream = formatter(max_line)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut <= len(data))})
    out = b"".join(stream.feed(data[start:end], NOW) for start, end in itertools.pairwise(edges))
    lines = parse(out + stream.finish(NOW))
    assert join(lines) == data
    assert all(len(content) <= max_line for _, content in lines)


@given(streams, st.integers(1, 12))
def test_byte_by_byte_is_the_same_text(data: bytes, max_line: int) -> None:
    stream, whole = formatter(max_line), formatter(max_line)
    single = b"".join(stream.feed(data[at : at + 1], NOW) for at in range(len(data))) + stream.finish(NOW)
    assert join(parse(single)) == join(parse(whole.feed(data, NOW) + whole.finish(NOW)))
