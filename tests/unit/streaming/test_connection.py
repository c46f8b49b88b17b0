"""One connection: its end, and who may write when."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast

import pytest

from runtime.streaming import connection as module
from runtime.streaming.connection import Connection


async def joined() -> tuple[Connection, socket.socket]:
    """A connection and the socket of its peer."""
    opened: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(opened.set_result), "127.0.0.1", 0)
    peer = socket.create_connection(server.sockets[0].getsockname())
    connection = await opened
    server.close()
    return connection, peer


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def test_a_peer_that_resets_right_before_the_end_is_no_error() -> None:
    for _ in range(20):
        connection, peer = await joined()
        connection.write(b"exit status")
        reset(peer)
        await connection.finish()  # without a turn of the loop in between: asyncio does not know yet
        await connection.lost.wait()


async def test_writers_that_wait_together_do_not_write_all_at_once() -> None:
    """300 times 64 KiB are more than may wait to be sent."""
    connection, peer = await joined()
    peer.setblocking(False)
    chunk, writers, received = bytes(64 * 1024), 300, 0

    async def write() -> None:
        for _ in range(2):
            await connection.drain()
            connection.write(chunk)

    tasks = [asyncio.create_task(write()) for _ in range(writers)]
    while received < 2 * writers * len(chunk):
        data = await asyncio.get_running_loop().sock_recv(peer, 1 << 20)
        assert data, "cut off"
        received += len(data)
    await asyncio.gather(*tasks)
    connection.abort()
    await connection.lost.wait()
    peer.close()


@pytest.mark.parametrize("unacked", [True, False])
@pytest.mark.parametrize(
    ("again", "since", "vanished"), [(2, 20_000, True), (1, 60_000, False), (9, 19_999, False)], ids=["gone", "once", "soon"]
)
def test_who_has_vanished(unacked: bool, again: int, since: int, vanished: bool) -> None:
    info = bytearray(128)
    info[2 if unacked else 3] = again
    struct.pack_into("=I", info, 24, int(unacked))
    struct.pack_into("=I", info, 56, since)

    class Told:
        def getsockopt(self, *_: object) -> bytes:
            return bytes(info)

    assert module._unanswered(cast("socket.socket", Told())) is vanished
