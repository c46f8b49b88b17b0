"""Giving back what a sandbox has of the node; StopPodSandbox and RemovePodSandbox end its containers before (sandbox_stop).

Every step asks whether there is something to do and leaves nothing behind whether the step before it ran or not, so that
it can be repeated after a crash anywhere in between.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kernel import cgroups, mounts, namespaces, removal
from kernel.failpoints import failpoint
from proto import api_pb2 as cri
from proto.errors import Code, CrispError
from runtime.host import cgroup_end
from runtime.pods import sandbox_group, sandbox_network

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Sandbox


async def undo(node: Node, sandbox: Sandbox) -> None:
    """Discard a sandbox that did not become ready, now or later; the caller holds its lock. Raises nothing."""

    def needed() -> bool:
        return node.sandboxes.get(sandbox.record.id) is sandbox

    await node.undoing.undo(lambda: discard(node, sandbox), needed, sandbox.lock, sandbox=sandbox.record.id)


async def discard(node: Node, sandbox: Sandbox) -> None:
    """Make a sandbox without containers disappear: kernel objects, directories, record."""
    record = sandbox.record
    await release(node, sandbox)
    failpoint("sandbox.released")
    directory = node.paths.sandbox(record.id)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(node.blocking, removal.discard_tree, directory)
    if directory.exists():
        raise CrispError(Code.INTERNAL, f"cannot remove {directory}: something is still mounted there")
    await node.store.sandboxes.delete(record.id)
    node.sandboxes.pop(record.id, None)


async def release(node: Node, sandbox: Sandbox) -> None:
    """Give back what the sandbox has of the kernel: network, pause process, namespaces, /dev/shm, cgroup."""
    record = sandbox.record
    await sandbox_group.end(node, sandbox)
    options = record.config.linux.security_context.namespace_options
    if options.network == cri.POD:
        await node.network.detach(sandbox_network.request(node.paths, record))
        record.ips, record.network = [], {}
    failpoint("sandbox.detached")
    await asyncio.get_running_loop().run_in_executor(node.blocking, _release_blocking, node, sandbox)


def _release_blocking(node: Node, sandbox: Sandbox) -> None:
    record = sandbox.record
    directory = node.paths.sandbox(record.id)
    hierarchies = node.host.hierarchies
    cgroup_end.end(hierarchies.group(record.cgroup))
    sandbox_group.remove(node, record)
    record.pause_pid = 0
    namespaces.unpin(str(node.paths.netns(record.id)))
    mounts.detach_all(str(directory))  # pinned namespaces and /dev/shm
    if record.owns_cgroup_parent:
        cgroup_end.end(hierarchies.group(cgroups.parent_path(record.cgroup_parent)))
