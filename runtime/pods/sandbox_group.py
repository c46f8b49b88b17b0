"""A sandbox as the kubelet's cAdvisor wants to see it: a cgroup that is called by its id, and a process in its network.

cAdvisor takes a pod's network figures from /proc/PID/net/dev of the process that a runtime has in each sandbox. crisp's
sandboxes are namespaces without a process. A thread of the daemon that waits in the namespace serves as well, for /proc
knows threads by their numbers too.

All this is made only for somebody who looks: from the first time on that cAdvisor has asked, also over restarts of the
daemon. cAdvisor asks for a sandbox's process once, when the cgroup appears; so after a restart the cgroups are made anew.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

import structlog

from kernel import cgroups
from proto import api_pb2 as cri
from proto.errors import CrispError
from runtime.network.netns import Witness

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Sandbox
    from runtime.records import SandboxRecord

SETTING: Final = "cadvisor"
"""Its key in the store: cAdvisor has asked."""

log = structlog.get_logger(__name__)


async def note(node: Node) -> None:
    """Somebody looks at cgroups, and will after a restart."""
    await node.store.settings.note(SETTING, True)


async def renew(node: Node, sandbox: Sandbox) -> None:
    """Make a ready sandbox's cgroup appear once more: whoever has seen it knows a process of before, or none."""
    if sandbox.lock.locked():
        return  # it is being stopped, or made: not waited for
    async with sandbox.lock:
        if node.looked_at and sandbox.record.ready_at and not sandbox.record.stopped_at:
            await asyncio.get_running_loop().run_in_executor(node.blocking, _renew, node, sandbox.record)


def _renew(node: Node, record: SandboxRecord) -> None:
    try:
        _group(node, record).remove()
    except OSError as error:
        _warn(record, error)
    make(node, record)


def make(node: Node, record: SandboxRecord) -> None:
    """Make the sandbox's cgroup if anybody looks, and below a parent of its client's: nobody looks at others. Blocks.

    A group that cannot be made costs the pod's figures, and not the pod.
    """
    if node.looked_at and not record.owns_cgroup_parent:
        try:
            _group(node, record).create_below_parent()
        except OSError as error:
            _warn(record, error)


def _warn(record: SandboxRecord, error: Exception) -> None:
    log.warning("cAdvisor will not see the pod's network", sandbox=record.id, error=str(error))


def _group(node: Node, record: SandboxRecord) -> cgroups.Group:
    """Called by the id, which is what cAdvisor asks for. The init of a shared PID namespace has a group of its own."""
    return node.host.hierarchies.group(cgroups.container_path(record.cgroup_parent, record.id, systemd=False))


def remove(node: Node, record: SandboxRecord) -> None:
    """Remove the sandbox's cgroup. Blocks."""
    _group(node, record).remove()


async def process(node: Node, sandbox: Sandbox) -> int:
    """The number of a process or thread in the sandbox's network namespace, 0 if it has none (any more, or just now).

    Valid until the sandbox stops or the daemon ends.
    """
    record = sandbox.record
    if record.stopped_at or sandbox.network_left:
        return 0
    if record.config.linux.security_context.namespace_options.network == cri.NODE:
        return os.getpid()
    begun = sandbox.witness
    try:
        if begun is None:
            path = str(node.paths.namespace(record.id, "net"))
            loop = asyncio.get_running_loop()
            begun = sandbox.witness = asyncio.ensure_future(loop.run_in_executor(node.blocking, Witness, path))
        return (await asyncio.shield(begun)).tid
    except (CrispError, OSError, RuntimeError) as error:  # the last one: the kernel gives no thread
        _warn(record, error)
        if sandbox.witness is begun:
            sandbox.witness = None  # whoever asks again has better luck, perhaps
        return 0


async def end(node: Node, sandbox: Sandbox) -> None:
    """Leave its network for good, which cannot go before; the sandbox is stopped, or is not made after all."""
    sandbox.network_left = True
    if sandbox.witness is None:
        return
    begun, sandbox.witness = sandbox.witness, None
    try:
        witness = await begun
    except (CrispError, OSError, RuntimeError):
        return
    await asyncio.get_running_loop().run_in_executor(node.blocking, witness.end)
