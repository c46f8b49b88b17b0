"""A shim's session: what it takes at once, and what becomes of it when nobody reads."""

from __future__ import annotations

import json
import socket
import types
from collections.abc import Coroutine, Generator, Iterator
from typing import Any

import pytest

from proto import shim_protocol
from shim.session import MAX_PENDING, Answer, Session


class StillLoop:
    """A loop in which nothing happens but by the test."""

    def __init__(self) -> None:
        self.tasks: list[Coroutine[Any, Any, Any]] = []

    def add(self, _fd: int, _callback: Any) -> None:
        """Readiness is the test's to tell."""

    def remove(self, _fd: int) -> None:
        """The same."""

    def spawn(self, task: Coroutine[Any, Any, Any]) -> None:
        task.send(None)
        self.tasks.append(task)

    def finish(self, number: int) -> None:
        with pytest.raises(StopIteration):
            self.tasks.pop(number).send(None)


@types.coroutine
def _once() -> Generator[None, None, None]:
    yield


async def serve(_session: Session, _request: Any, _fds: list[int]) -> Answer:
    await _once()
    return {}, []


Pair = tuple[Session, socket.socket, StillLoop, list[Session]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop, closed = StillLoop(), []
    session = Session(loop, theirs, serve, closed.append)  # type: ignore[arg-type]
    with ours, theirs:
        ours.setblocking(False)
        yield session, ours, loop, closed
        while loop.tasks:
            loop.finish(0)


def ask(session: Session, client: socket.socket, seq: int) -> None:
    client.send(shim_protocol.request("state", seq, {}))
    session._on_readable(0)


def test_so_many_requests_at_once_and_no_more(pair: Pair) -> None:
    session, client, loop, _ = pair
    for seq in range(MAX_PENDING):
        ask(session, client, seq)
    with pytest.raises(BlockingIOError):
        client.recv(1 << 16)
    ask(session, client, 100)
    refused = json.loads(client.recv(1 << 16))
    assert refused["seq"] == 100
    assert "too many requests" in refused["error"]["message"]
    loop.finish(3)
    assert json.loads(client.recv(1 << 16)) == {"seq": 3, "ok": {}}
    ask(session, client, 101)
    with pytest.raises(BlockingIOError):
        client.recv(1 << 16)


def test_who_does_not_read_is_dropped_once(pair: Pair) -> None:
    session, _client, _loop, closed = pair
    for _ in range(10_000):
        session.tell({"event": "exit", "text": "x" * 1000})
    assert closed == [session]
    session.close()
    assert closed == [session]


def test_who_leaves_is_gone(pair: Pair) -> None:
    session, client, _loop, closed = pair
    client.close()
    session._on_readable(0)
    assert closed == [session]
