"""Which network a pod gets: CNI plugins, or the builtin one.

With mode "auto" the builtin network serves a node of which nothing tells that it belongs to a cluster (cluster.py), until
there is a CNI configuration that can be used. From either on pods are the plugins', or wait for them; those that are there
keep the network they have. A configuration that is taken away again does not bring the builtin network back, as pods of one
cluster must not end up in two networks; starting the daemon anew does, on a node of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import structlog

from proto.errors import CrispError
from runtime.network.builtin import BuiltinNetwork
from runtime.network.cluster import Cluster
from runtime.network.cni.attachments import KIND
from runtime.network.cni.network import CniNetwork
from runtime.network.config import HandlerNetworks, NetworkConfig
from runtime.network.seam import LeaseStore, NetworkRequest, NetworkResult, Readiness

log = structlog.get_logger(__name__)


class AutoNetwork:
    """A `PodNetwork` of one or two others."""

    def __init__(
        self,
        config: NetworkConfig,
        store: LeaseStore,
        state: Path,
        pod_cidrs: Sequence[str] = (),
        handlers: Mapping[str, HandlerNetworks] = MappingProxyType({}),
    ) -> None:
        self._config = config
        self._cni_store, self._builtin_store = _Share(store, cni=True), _Share(store, cni=False)
        self._cni = CniNetwork(config.cni, self._cni_store, state, pod_cidrs, handlers)
        self._cluster = Cluster(config.cluster_files, pod_cidrs)
        self._builtin: BuiltinNetwork | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Start what is needed: CNI unless it is switched off, builtin if it serves new pods or has some."""
        await self._look()
        if self._config.mode != "builtin" or self._cni_store.items():
            await self._cni.start()
        if self._serves_builtin("") or self._builtin_store.items():
            await self._started_builtin()

    async def close(self) -> None:
        """Let go of both."""
        await self._cni.close()
        if self._builtin is not None:
            await self._builtin.close()

    @property
    def uses_cni(self) -> bool:
        """Whether the next pod without a handler of its own is the plugins'."""
        return not self._serves_builtin("")

    def _serves_builtin(self, handler: str) -> bool:
        if self._config.mode == "auto":
            return not self._cni.seen and not self._cni.serves(handler) and not self._cluster.sign
        return self._config.mode == "builtin"

    async def _look(self) -> None:
        if self._config.mode == "auto":  # else nothing depends on it
            await self._cluster.look()

    async def _started_builtin(self) -> BuiltinNetwork:
        """The builtin network, which does not touch the host before it is needed."""
        async with self._starting:
            if self._builtin is None:
                network = BuiltinNetwork(self._config, self._builtin_store)
                await network.start()
                self._builtin = network
            return self._builtin

    async def attach(self, request: NetworkRequest) -> NetworkResult:
        """Connect a sandbox."""
        await self._look()
        if self._serves_builtin(request.runtime_handler):
            await self._cni.detach(request)
            return await (await self._started_builtin()).attach(request)
        if self._builtin is not None:
            await self._builtin.detach(request)
        try:
            return await self._cni.attach(request)
        except CrispError as error:
            raise CrispError(error.code, self._explained(error.message)) from error

    async def detach(self, request: NetworkRequest) -> None:
        """Disconnect a sandbox from whichever network it has."""
        await self._cni.detach(request)
        if self._builtin is not None:
            await self._builtin.detach(request)

    async def check(self) -> Readiness:
        """Of the network that the next pod gets."""
        await self._look()
        if not self._serves_builtin(""):
            if self._builtin is not None:
                await self._builtin.check()  # pods from before are mended as long as they are there
            told = await self._cni.check()
            return told if told.ready else Readiness(False, told.reason, self._explained(told.message))
        readiness = await (await self._started_builtin()).check()
        if self._config.mode == "builtin":
            return readiness
        await self._cni.check()  # a plugin may have been installed by now
        problems = self._cni.problems()
        if readiness.ready and not readiness.message and problems:
            return Readiness(True, "CNIConfigIgnored", f"the builtin network serves until this is mended: {problems}")
        return readiness

    def _explained(self, message: str) -> str:
        """With the reason why the builtin network does not help out, where it could."""
        if self._config.mode != "auto" or self._cni.seen or not (sign := self._cluster.sign):
            return message
        return f'{message} (a cluster\'s network is expected: {sign}; network.mode = "builtin" is for a node without one)'

    async def sweep(self, live_sandbox_ids: set[str]) -> None:
        """Remove what belongs to no living sandbox."""
        await self._cni.sweep(live_sandbox_ids)
        if self._builtin is not None:
            await self._builtin.sweep(live_sandbox_ids)

    async def set_pod_cidrs(self, cidrs: Sequence[str]) -> None:
        """For the plugins; the builtin network has subnets of its own."""
        self._cluster.given(cidrs)
        if self._config.mode != "builtin":
            await self._cni.set_pod_cidrs(cidrs)

    async def destroy(self) -> None:
        """Remove everything."""
        await self._cni.destroy()
        if self._builtin is not None:
            await self._builtin.destroy()


class _Share:
    """The part of the lease table that belongs to one of the two."""

    def __init__(self, store: LeaseStore, *, cni: bool) -> None:
        self._store = store
        self._cni = cni

    def items(self) -> list[tuple[str, Any]]:
        return [(key, lease) for key, lease in self._store.items() if (lease.get("kind") == KIND) is self._cni]

    async def put(self, key: str, document: object) -> None:
        await self._store.put(key, document)

    async def delete(self, key: str) -> None:
        await self._store.delete(key)
