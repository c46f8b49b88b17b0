"""runtime/nri/plugins.py and plugin.py: what is known before anybody connects."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from proto import nri_mux, ttrpc
from proto import nri_pb2 as nri
from runtime.config.nri import NriConfig
from runtime.nri.connection import Connection
from runtime.nri.figures import Figures
from runtime.nri.plugin import VALID_EVENTS, Plugin
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


async def test_who_gives_up_does_not_take_a_request_back() -> None:
    """The plugin has it: it is asked the next thing once it has answered, and what it answers is not taken for a mistake."""

    async def update(*_: Any) -> Any:
        raise NotImplementedError

    plugin = Plugin(NriConfig(), Figures(), update, index="10", name="slow")
    plugin.events = VALID_EVENTS
    plugin._settled.set()
    ours, its = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(lambda: plugin.connection, sock=ours)
    reader, writer = await asyncio.open_connection(sock=its)
    demultiplexer, callee = nri_mux.Demultiplexer(), ttrpc.Callee()

    async def calls() -> list[ttrpc.Call]:
        return [call for _, data in demultiplexer.receive(await reader.read(65536)) for call in callee.receive(data)]

    first = asyncio.ensure_future(plugin.ask(nri.START_CONTAINER, nri.StartContainerRequest()))
    (begun,) = await calls()
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.ensure_future(plugin.ask(nri.STOP_CONTAINER, nri.StopContainerRequest()))
    while not plugin._one_at_a_time._waiters:
        await asyncio.sleep(0)
    writer.write(nri_mux.encode(nri_mux.PLUGIN, callee.answer(begun.stream, b"")))
    (following,) = await calls()
    assert (begun.method, following.method) == ("StartContainer", "StopContainer")
    writer.write(nri_mux.encode(nri_mux.PLUGIN, callee.answer(following.stream, b"")))
    assert await second == nri.StopContainerResponse()
    assert not plugin.closed
    writer.close()
    transport.close()
