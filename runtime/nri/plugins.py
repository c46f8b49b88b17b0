"""All plugins of the node: those that connect, those that are pre-installed, and the order in which they are asked.

A plugin that joins late is told what there is by Synchronize, and of everything after that by events. Both are decided in
one step: the state is taken and the plugin is entered into the list without anything happening in between. What had begun to
be told to the plugins before is in the state; what begins to be told after is told to it too, once it has answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from kernel import sockets
from proto import nri_pb2 as nri
from runtime.nri import launch
from runtime.nri.figures import Figures
from runtime.nri.plugin import Plugin

if TYPE_CHECKING:
    from runtime.config.nri import NriConfig

CONNECTIONS: Final = 64
"""Plugins at once, those that have not registered yet included."""

SHUTDOWN_SECONDS: Final = 1.0
"""How long a plugin may take to answer Shutdown."""

log = structlog.get_logger(__name__)


class World(Protocol):
    """The pods and containers, as plugins see them."""

    async def prepare(self) -> None:
        """Do what makes `state` quick."""

    def state(self) -> tuple[list[nri.PodSandbox], list[nri.Container]]:
        """Everything that the plugins so far were told of and that is still there."""

    async def update(self, updates: Sequence[nri.ContainerUpdate]) -> list[nri.ContainerUpdate]:
        """Change containers; those that could not be changed and may not fail."""

    def evict(self, evictions: Sequence[nri.ContainerEviction]) -> None:
        """Begin to end containers."""


class Plugins:
    """The plugins, in the order in which they are asked."""

    def __init__(self, config: NriConfig) -> None:
        self.config = config
        self.figures = Figures()
        self._world: World | None = None
        self._plugins: list[Plugin] = []
        self._connected: set[Plugin] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._processes: list[launch.Process] = []
        self._server: asyncio.Server | None = None
        self._ending = False

    def __iter__(self) -> Iterator[Plugin]:
        return iter(self._plugins)

    def __bool__(self) -> bool:
        return bool(self._plugins)

    def asked(self, event: int) -> list[Plugin]:
        """Those that want to hear of the event, in order."""
        return [plugin for plugin in self._plugins if plugin.wants(event)]

    def describe(self) -> dict[str, Any]:
        """For people: `crictl info`."""
        return {
            "enabled": self.config.enabled,
            "socket": str(self.config.socket_path) if self._server is not None else "",
            "plugins": [plugin.describe() for plugin in self._plugins],
        }

    # ---- life ----

    async def start(self, world: World) -> None:
        """Start the pre-installed plugins, wait until each is ready or given up, and take others from then on."""
        self._world = world
        if not self.config.enabled:
            return
        loop = asyncio.get_running_loop()
        installed = await loop.run_in_executor(None, launch.find, self.config.plugin_path, self.config.plugin_config_path)
        await asyncio.gather(*(self._launch(program) for program in installed))
        if not self.config.disable_connections:
            await self._listen()

    async def _launch(self, program: launch.Installed) -> None:
        plugin = Plugin(self.config, self.figures, self._update, index=program.index, name=program.name)
        plugin.settings = program.config
        self._connected.add(plugin)
        try:
            process, connection = launch.start(program)
        except OSError as error:
            self._connected.discard(plugin)
            log.warning("nri plugin not started", path=str(program.path), error=error.strerror)
            return
        self._processes.append(process)
        plugin.own_pid = process.pid
        plugin.on_end = lambda: self._forget(plugin, process)
        await asyncio.get_running_loop().create_unix_connection(lambda: plugin.connection, sock=connection)
        await self._admit(plugin)

    async def _listen(self) -> None:
        path = str(self.config.socket_path)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            sockets.make_room(path)
            with sockets.bound_for_owner():
                self._server = await asyncio.get_running_loop().create_unix_server(self._connect, path)
        except OSError as error:
            log.warning("nri socket not served", path=path, error=error.strerror or str(error))

    def _connect(self) -> asyncio.Protocol:
        """A connection was made: asyncio wants its protocol."""
        plugin = Plugin(self.config, self.figures, self._update)
        plugin.on_end = lambda: self._forget(plugin, None)
        self._connected.add(plugin)
        self.background(self._admit(plugin))
        return plugin.connection

    async def _admit(self, plugin: Plugin) -> None:
        """From the connection to the place in the list."""
        if len(self._connected) > CONNECTIONS:
            plugin.close("registration", f"there are {CONNECTIONS} plugins already")
            return
        if not await plugin.introduce() or self._ending:
            return
        assert self._world is not None
        await self._world.prepare()
        if plugin.closed or self._ending:
            return
        pods, containers = self._world.state()
        self._plugins = sorted((*self._plugins, plugin), key=lambda one: one.index)
        try:
            updates = await plugin.synchronize(pods, containers)
        except BaseException:
            plugin.close("synchronization", "it could not be told what there is")  # else pods would wait for it for ever
            raise
        if updates and not plugin.closed:
            await self._world.update(updates)

    def _forget(self, plugin: Plugin, process: launch.Process | None) -> None:
        """A plugin's connection has ended."""
        self._connected.discard(plugin)
        self._plugins = [one for one in self._plugins if one is not plugin]
        if process is not None and process in self._processes:
            self._processes.remove(process)
            self.background(process.end())

    async def _update(self, plugin: Plugin, request: nri.UpdateContainersRequest) -> nri.UpdateContainersResponse:
        """What a plugin wants changed of itself."""
        assert self._world is not None
        failed = await self._world.update(request.update)
        self._world.evict(request.evict)
        return nri.UpdateContainersResponse(failed=failed)

    async def carry_out(self, updates: Sequence[nri.ContainerUpdate], evictions: Sequence[nri.ContainerEviction]) -> None:
        """What plugins want of containers that the request was not about; what cannot be done is logged."""
        assert self._world is not None
        self._world.evict(evictions)
        await self._world.update(updates)

    def background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something to its end, whoever waits for it; the daemon waits for it when it ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("work for nri plugins has failed", exc_info=error)

    async def stop(self) -> None:
        """Take no more plugins, tell those that are there, and end those that were started here."""
        self._ending = True
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.config.socket_path)
        await asyncio.gather(*(plugin.shut_down(SHUTDOWN_SECONDS) for plugin in list(self._connected)))
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
