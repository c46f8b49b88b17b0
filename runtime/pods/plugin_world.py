"""What NRI plugins see of the node as a whole, and what they change of it without being asked about it.

They change containers while verbs are under way, of the same containers too: a plugin may well answer one request with an
update of the container that another request is about. So an update takes no lock of a verb, only that of the resizing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from proto import api_pb2 as cri
from proto import nri_pb2 as nri
from proto.errors import CrispError, not_found
from runtime.nri.plugin import SAID_CHARACTERS
from runtime.pods import container_adjust, container_stop, container_update, plugin_hooks

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container

log = structlog.get_logger(__name__)


class PluginWorld:
    """The node, for runtime/nri/plugins.py."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def prepare(self) -> None:
        """Read what `state` needs of the disk, a part at a time: it must not hold up everything else."""
        for container in list(self._node.containers.values()):
            if container.known and not container.stop_told and container.view is None:
                plugin_hooks.container_view(self._node, container)
                await asyncio.sleep(0)

    def state(self) -> tuple[list[nri.PodSandbox], list[nri.Container]]:
        """All that plugins were told of: pods until their removal, containers until their end."""
        node = self._node
        pods = [plugin_hooks.pod_view(node, sandbox) for sandbox in node.sandboxes.values() if sandbox.known]
        containers = [
            plugin_hooks.container_view(node, container)
            for container in node.containers.values()
            if container.known and not container.stop_told
        ]
        return pods, containers

    async def update(self, updates: Sequence[nri.ContainerUpdate]) -> list[nri.ContainerUpdate]:
        """Change containers one after the other; those that could not be changed, but for those that may fail."""
        failed = []
        for update in updates:
            try:
                nothing = cri.LinuxContainerResources()
                asked, beyond = await container_adjust.changes(self._node, update.linux.resources, nothing)
                await container_update.resize(self._node, self._named(update.container_id), asked, beyond)
            except (CrispError, OSError) as error:  # also of a control group that has just gone
                if update.ignore_failure:
                    continue
                said = error.message if isinstance(error, CrispError) else str(error)
                log.warning("nri update has failed", container=update.container_id, error=said)
                failed.append(update)
        return failed

    def evict(self, evictions: Sequence[nri.ContainerEviction]) -> None:
        """End containers at once. Nobody waits for it: the plugin that wants it may have to hear of their end first."""
        for eviction in evictions:
            why = eviction.reason[:SAID_CHARACTERS]
            log.warning("nri plugin evicts a container", container=eviction.container_id, why=why)
            self._node.plugins.background(self._evict(eviction.container_id))

    def _named(self, identity: str) -> Container:
        """By the whole id: plugins do not abbreviate, and part of one would be a mistake that hits somebody else."""
        if identity not in self._node.containers:
            raise not_found(f"no container with id {identity}")
        return self._node.containers[identity]

    async def _evict(self, identity: str) -> None:
        try:
            await container_stop.stop(self._node, self._named(identity).record.id, 0)
        except CrispError as error:
            log.warning("nri eviction has failed", container=identity, error=error.message)
