"""runtime/nri/plugins.py and plugin.py: what is known before anybody connects."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from proto import nri_pb2 as nri
from runtime.config.nri import NriConfig
from runtime.nri.connection import Connection
from runtime.nri.plugin import VALID_EVENTS
from runtime.nri.plugins import Plugins


def test_every_event_can_be_subscribed_to_and_nothing_else() -> None:
    events = [number for number in nri.Event.values() if nri.UNKNOWN < number < nri.LAST]
    assert sum(1 << (number - 1) for number in events) == VALID_EVENTS


def test_a_socket_that_is_not_open_is_not_named() -> None:
    assert Plugins(NriConfig()).describe() == {"enabled": True, "socket": "", "plugins": []}


async def test_who_has_connected() -> None:
    """For the log: an operator looks for the program."""

    async def serve(*_: Any) -> bytes:
        raise NotImplementedError

    connection = Connection(serve, lambda: None)
    assert connection.peer_pid() == 0
    ours, its = socket.socketpair()
    with its:
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: connection, sock=ours)
        assert connection.peer_pid() == os.getpid()
        transport.close()
