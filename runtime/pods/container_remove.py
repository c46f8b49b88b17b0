"""RemoveContainer, and the undoing of a container that was not made.

As in sandbox_release: every step can be repeated after a crash anywhere in between.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from kernel import mounts, removal
from kernel.failpoints import failpoint
from proto.errors import Code, CrispError
from runtime.host import cgroup_end
from runtime.pods import container_stop, image_volumes, plugin_hooks
from runtime.shims.client import kill_shim, shim_alive

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container
    from runtime.records import ContainerRecord


async def remove(node: Node, reference: str) -> None:
    """Remove a container, killing it if it runs. Success if there is none."""
    container = node.find_container(reference)
    if container is not None:
        await remove_container(node, container)


async def remove_container(node: Node, container: Container) -> None:
    """As `remove`, for a container at hand."""
    await container_stop.kill(node, container)
    await plugin_hooks.stop_answered(container)
    async with container_stop.locked(container.lock, [container]):
        if container.record.id not in node.containers:
            return
        await container_stop.dismiss(node, container)
        await plugin_hooks.container_removed(node, container)
        failpoint("container.removing")
        node.remember(container)
        await discard(node, container)
    node.events.container_deleted(container)


async def undo(node: Node, container: Container) -> None:
    """Discard a container that was not made, now or later; the caller holds its lock. Raises nothing."""

    def needed() -> bool:
        return node.containers.get(container.record.id) is container

    await node.undoing.undo(lambda: discard(node, container), needed, container.lock, container=container.record.id)


async def discard(node: Node, container: Container) -> None:
    """Make the container disappear: shim, cgroup, directories, hold on the image, record."""
    record = container.record
    if container.shim is not None and container.watcher is None:
        container.shim.close()
        container.shim = None
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(node.blocking, _discard_blocking, node, container)
    failpoint("container.unlinked")
    async with container.resizing:  # a plugin's update does not bring the record back
        await node.store.containers.delete(record.id)
        for holder, _ in image_volumes.holders(record):
            node.images.release(holder)
        node.containers.pop(record.id, None)
        container.sandbox.containers.pop(record.id, None)


def _runtime_state(node: Node, record: ContainerRecord) -> Path:
    """What the OCI runtime remembers of the container: a shim that was killed has not had it delete that."""
    handler = dict(node.handlers.named()).get(record.handler)
    return (Path(handler.root) if handler else node.paths.runtime_root(record.handler)) / record.id


def _discard_blocking(node: Node, container: Container) -> None:
    record = container.record
    cgroup_end.end_container(node.host.hierarchies, record)
    bundle, layer = node.paths.bundle(record.id), node.paths.writable_layer(record.id)
    if shim_alive(str(bundle)):  # it was never asked to create anything, and would wait for that
        kill_shim(str(bundle))
    state = _runtime_state(node, record)
    for directory in (bundle, state):  # in the latter runc mounts itself for a moment, in which it may have been killed
        mounts.detach_all(str(directory))
    for directory in (bundle, layer, state):
        removal.discard_tree(directory)
        if directory.exists():
            raise CrispError(Code.INTERNAL, f"cannot remove {directory}: something is still mounted there")
