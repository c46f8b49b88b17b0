"""The init of a pod's shared PID namespace: its end makes the sandbox not ready.

The kernel then kills all that is in the namespace, and nothing can be made in it any more. An event says so, and the kubelet
replaces the pod.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import structlog

from runtime.records import CLOCK

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Sandbox

log = structlog.get_logger(__name__)


def watch(node: Node, sandbox: Sandbox) -> None:
    """Begin to watch, once it was made or the daemon has started again."""
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(sandbox.record.pause_pid)
    except ProcessLookupError:
        pidfd = -1
    # The pid may be another's since the daemon looked last; what lives in the sandbox's cgroup is its init.
    if pidfd < 0 or sandbox.record.pause_pid not in node.host.hierarchies.group(sandbox.record.cgroup).procs():
        if pidfd >= 0:
            os.close(pidfd)
        sandbox.pause = asyncio.ensure_future(_ended(node, sandbox))
        return

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        sandbox.pause = asyncio.ensure_future(_ended(node, sandbox))

    loop.add_reader(pidfd, ended)


async def _ended(node: Node, sandbox: Sandbox) -> None:
    record = sandbox.record
    async with sandbox.lock:
        if record.stopped_at or not record.pause_pid or node.sandboxes.get(record.id) is not sandbox:
            return  # crisp itself has ended it
        log.warning("the init of a pod's PID namespace has ended: the pod must be replaced", sandbox=record.id)
        record.message = "the init process of its PID namespace was killed"
        record.stopped_at = CLOCK.now()
        node.events.sandbox_stopped(sandbox)
        await node.store.sandboxes.note(record.id, record.document())
