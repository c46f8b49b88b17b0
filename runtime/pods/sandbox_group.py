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


async def look(node: Node) -> None:
    """Somebody looks at cgroups: sandboxes have them from now on."""
    node.looked_at = True
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
        make(node, record)
    except OSError as error:
        log.warning("cAdvisor will not see the pod's network", sandbox=record.id, error=str(error))


def make(node: Node, record: SandboxRecord) -> None:
    """Make the sandbox's cgroup if anybody looks, and below a parent of its client's: nobody looks at others. Blocks."""
    if node.looked_at and not record.owns_cgroup_parent:
        _group(node, record).create_below_parent()


def _group(node: Node, record: SandboxRecord) -> cgroups.Group:
    """Called by the id, which is what cAdvisor asks for. The init of a shared PID namespace has a group of its own."""
    return node.host.hierarchies.group(cgroups.container_path(record.cgroup_parent, record.id, systemd=False))


def remove(node: Node, record: SandboxRecord) -> None:
    """Remove the sandbox's cgroup. Blocks."""
    _group(node, record).remove()


async def process(node: Node, sandbox: Sandbox) -> int:
    """The number of a process or thread in the sandbox's network namespace, 0 if it has none (any more).

    Valid until the sandbox stops or the daemon ends.
    """
    record = sandbox.record
    if record.config.linux.security_context.namespace_options.network == cri.NODE:
        return os.getpid()
    if sandbox.witness is None and not record.stopped_at:
        path = str(node.paths.namespace(record.id, "net"))
        sandbox.witness = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(node.blocking, Witness, path))
    if sandbox.witness is None:
        return 0
    try:
        witness = await asyncio.shield(sandbox.witness)
    except (CrispError, OSError) as error:
        log.warning("cAdvisor will not see the pod's network", sandbox=record.id, error=str(error))
        return 0
    return witness.tid


async def end(node: Node, sandbox: Sandbox) -> None:
    """Leave its network, which cannot go before; the sandbox is stopped."""
    if sandbox.witness is None:
        return
    begun, sandbox.witness = sandbox.witness, None
    try:
        witness = await begun
    except (CrispError, OSError):
        return
    await asyncio.get_running_loop().run_in_executor(node.blocking, witness.end)
