"""StopPodSandbox and RemovePodSandbox: first the containers, then what the sandbox itself has (sandbox_release).

As there, every step can be repeated after a crash anywhere in between.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kernel.failpoints import failpoint
from runtime.pods import container_remove, container_stop, plugin_hooks, sandbox_release
from runtime.records import CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.pods.node import Node
    from runtime.pods.objects import Sandbox


async def stop(node: Node, reference: str) -> None:
    """End all containers of the sandbox, then give back its network. Success if there is no such sandbox."""
    sandbox = node.find_sandbox(reference)
    if sandbox is None:
        return
    async with container_stop.locked(sandbox.lock, sandbox.containers.values()):
        if sandbox.record.id in node.sandboxes:  # else its record would come back, and the pod with the next daemon
            await _stop(node, sandbox)


async def remove(node: Node, reference: str, still: Callable[[], bool] = lambda: True) -> None:
    """Remove the sandbox with all its containers. Success if there is no such sandbox.

    `still` is asked whether it is to go, once nothing can be made in it any more.
    """
    sandbox = node.find_sandbox(reference)
    if sandbox is None:
        return
    async with container_stop.locked(sandbox.lock, sandbox.containers.values()):
        if sandbox.record.id not in node.sandboxes or not still():
            return
        await _stop(node, sandbox)
        for container in list(sandbox.containers.values()):
            await container_remove.remove_container(node, container)
        await plugin_hooks.sandbox_removed(node, sandbox)
        await sandbox_release.discard(node, sandbox)
    node.events.sandbox_deleted(sandbox)


async def _stop(node: Node, sandbox: Sandbox) -> None:
    record = sandbox.record
    if not record.stopped_at:
        # From here on no container can be created in it: CreateContainer looks at the state under the same lock.
        record.stopped_at = CLOCK.now()
    ending = list(sandbox.containers.values())
    await asyncio.gather(*(container_stop.kill(node, container) for container in ending))
    for container in ending:
        await plugin_hooks.stop_answered(container)
    await plugin_hooks.sandbox_stopped(node, sandbox)
    failpoint("sandbox.ended")
    await sandbox_release.release(node, sandbox)
    await node.store.sandboxes.note(record.id, record.document())
    node.events.sandbox_stopped(sandbox)
