"""runtime/streaming/session.py: how much a session keeps for readers, and when it lets its client wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runtime.streaming.session import SESSION_BYTES, STREAM_BYTES, Session, Stream


class Wire:
    """Says whether it reads."""

    def __init__(self) -> None:
        self.reads = True
        self.lost = asyncio.Event()

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


def session() -> tuple[Any, Wire]:
    wire = Wire()
    return Session(wire), wire  # type: ignore[arg-type]


async def test_what_was_given_up_is_not_counted() -> None:
    """Nor is a byte of it, however many streams come and go."""
    made, wire = session()
    for number in range(SESSION_BYTES // STREAM_BYTES * 4):
        stream = Stream(made, number, {})
        stream.feed(b"x" * (STREAM_BYTES - 1))
        stream.feed_reset()
        assert wire.reads
    other = Stream(made, 1, {})
    other.feed(b"x" * STREAM_BYTES)
    assert not wire.reads
    assert await other.read() == b"x" * STREAM_BYTES
    assert wire.reads


@pytest.mark.parametrize("kept", [1, 2])
def test_the_session_has_a_bound_of_its_own(kept: int) -> None:
    """Reached to the byte: what streams have given up does not bring it nearer."""
    made, wire = session()
    for number in range(100):
        gone = Stream(made, 1000 + number, {})
        gone.feed(b"x")
        gone.feed_reset()
    left = SESSION_BYTES - kept
    number = 0
    while left:
        part = min(left, STREAM_BYTES - 1)
        Stream(made, number, {}).feed(b"x" * part)
        left, number = left - part, number + 1
    assert wire.reads
    Stream(made, number, {}).feed(b"x" * kept)
    assert not wire.reads
