"""A session with a shim: what was sent is received, and a shim that hangs or is full does not hold up the daemon."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto import shim_protocol
from proto.errors import Code, CrispError
from proto.shim_protocol import Message
from runtime.shims.connection import Connection


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(tmp_path, os.O_PATH)
    channel.bind(f"/proc/self/fd/{directory}/shim.sock")
    os.close(directory)
    channel.listen(2)
    yield channel
    channel.close()


async def test_event_of_a_shim_that_leaves_with_a_request_unread(listener: socket.socket, tmp_path: Path) -> None:
    events: list[Message] = []
    connection = Connection.open(str(tmp_path), events.append)
    shim, _ = listener.accept()
    request = asyncio.ensure_future(connection.request("state"))
    await asyncio.sleep(0)
    shim.send(shim_protocol.encode({"event": "exec_exit", "exit_code": 5}))
    shim.close()
    await connection.closed
    assert events == [{"event": "exec_exit", "exit_code": 5}]
    with pytest.raises(CrispError) as caught:
        await request
    assert caught.value.code is Code.UNAVAILABLE


async def test_shim_that_takes_no_connections(listener: socket.socket, tmp_path: Path) -> None:
    """Its queue is full: the next is refused, at once."""
    open_ones = []
    with pytest.raises(CrispError) as caught:
        for _ in range(100):
            open_ones.append(Connection.open(str(tmp_path), lambda _: None))
    assert caught.value.code is Code.UNAVAILABLE
    assert open_ones
    for connection in open_ones:
        connection.close()


async def test_shim_that_does_not_answer(listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor read: the session stays open, for the shim may go on."""
    monkeypatch.setattr("runtime.shims.connection.USUAL_ANSWER_SECONDS", 0.0)
    connection = Connection.open(str(tmp_path), lambda _: None)
    for _ in range(2000):
        with pytest.raises(CrispError, match="does not answer") as caught:
            await connection.request("signal", signal=15)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert not connection.closed.done()
    connection.close()
