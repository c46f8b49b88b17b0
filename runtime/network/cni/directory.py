"""A directory of network configurations: read, checked against the plugins, watched.

    /etc/cni/net.d/
        10-cluster.conflist             the first good file is the pods' network, with max_conf_num more of them
        cluster/*.conf                  more plugins of the network "cluster", unless it says loadOnlyInlinedPlugins

A file that cannot be used is reported and skipped. If it could be used before it was changed, it goes on as it was: a
slip of an editor, or a plugin that is just being replaced, takes no network away. A file that is removed is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from kernel import inotify
from proto.errors import CrispError, invalid
from runtime.network.cni import network_list
from runtime.network.cni.network_list import NetworkList

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from runtime.network.cni.plugins import Plugins

log = structlog.get_logger(__name__)

SUFFIXES: Final = (".conflist", ".conf", ".json")

MAX_FOLDERS: Final = 64

QUIET_SECONDS: Final = 0.05
"""How long after a change the directory is read, so that a file that is written in pieces is read once."""


class Directory:
    """The networks of one directory, as of its last change."""

    def __init__(self, path: Path, limit: int, plugins: Plugins) -> None:
        self.path = path
        self._limit = limit
        """Networks per pod; 0: all there are."""
        self._plugins = plugins
        self._good: dict[str, NetworkList] = {}
        """By file name, in order."""
        self.problems: dict[str, str] = {}
        """Reasons by file name."""
        self._watched = -1
        self._reading = asyncio.Lock()
        self._stale = False
        """Whether something has changed since it was read."""
        self._following: asyncio.Task[None] | None = None

    @property
    def networks(self) -> tuple[NetworkList, ...]:
        """A pod's networks in their order; the first is on eth0."""
        found = tuple(self._good.values())
        return found[: self._limit] if self._limit else found

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that `networks` come from."""
        return tuple(self._good)

    async def read(self) -> None:
        """Read the directory anew."""
        async with self._reading:
            good: dict[str, NetworkList] = {}
            problems: dict[str, str] = {}
            for name in await asyncio.to_thread(self._names):
                try:
                    good[name] = await self._load(self.path / name)
                except CrispError as error:
                    problems[name] = error.message
                    if name in self._good:
                        good[name] = self._good[name]
            for name, reason in problems.items():
                if self.problems.get(name) != reason:
                    log.warning("CNI configuration cannot be used", file=str(self.path / name), reason=reason)
            if good != self._good:
                log.info("CNI networks", directory=str(self.path), networks=[network.name for network in good.values()])
            self._good, self.problems = good, problems

    def _names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.path) if name.endswith(SUFFIXES) and not name.startswith("."))
        except OSError:
            return []

    async def _load(self, path: Path) -> NetworkList:
        network = network_list.parse(await asyncio.to_thread(_text, path), single=path.suffix != ".conflist", more=True)
        if not network.inlined_only:
            network = await asyncio.to_thread(self._with_more_plugins, network)
        if not network.plugins:
            raise invalid(f"{network_list.NO_PLUGINS}, and {self.path / network.name} has no *.conf")
        asking = network.versions[0]
        return network.speaking([await self._plugins.versions(str(plugin["type"]), asking) for plugin in network.plugins])

    def _with_more_plugins(self, network: NetworkList) -> NetworkList:
        folder = self.path / network.name
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(".conf"))
        except OSError:
            return network
        return network.with_plugins(network_list.parse_plugin(_text(folder / name)) for name in names)

    async def watch(self, changed: Callable[[], Coroutine[None, None, None]]) -> None:
        """Follow the directory's changes from now on; `changed` is called after each, once it is read."""
        self._unwatch()
        # Where the directory does not exist yet, what can be watched is the nearest of its parents.
        try:
            place = await asyncio.to_thread(self._place)
            self._watched = inotify.watch(str(place))
        except OSError as error:
            log.warning("CNI directory cannot be watched", directory=str(self.path), reason=str(error))
            return
        if place == self.path:
            await asyncio.to_thread(self._watch_folders)
        asyncio.get_running_loop().add_reader(self._watched, self._event, changed)

    def _place(self) -> Path:
        return next(parent for parent in (self.path, *self.path.parents) if parent.is_dir())

    def _watch_folders(self) -> None:
        """Those in which networks may have more plugins, and which appear as entries of the directory themselves."""
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            for entry in itertools.islice((entry for entry in entries if entry.is_dir()), MAX_FOLDERS):
                inotify.add(self._watched, entry.path)

    def _event(self, changed: Callable[[], Coroutine[None, None, None]]) -> None:
        inotify.drain(self._watched)
        self._stale = True
        if self._following is None:
            self._following = asyncio.create_task(self._follow(changed))

    async def _follow(self, changed: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            while self._stale:
                await asyncio.sleep(QUIET_SECONDS)
                self._stale = False
                # Watched anew before it is read: the directory may be another one by now.
                await self.watch(changed)
                await self.read()
                await changed()
        finally:
            self._following = None

    def _unwatch(self) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
            self._watched = -1

    async def close(self) -> None:
        """Watch no more."""
        self._unwatch()
        if (task := self._following) is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _open(path: str, flags: int) -> int:
    """Not waiting for who writes to a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _text(path: Path) -> str:
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise invalid("is no plain file")
            data = file.read(network_list.MAX_FILE_BYTES + 1)
    except OSError as error:
        raise invalid(f"cannot be read: {error.strerror}") from None
    if len(data) > network_list.MAX_FILE_BYTES:
        raise invalid("too large for a network configuration")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"not UTF-8: {error.reason} at byte {error.start}") from None
