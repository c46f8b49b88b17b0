"""StopContainer: the stop signal, the grace period, then the whole cgroup.

Stopping looks at what is, not at events: a stop that is repeated after a crash takes up where the first was.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from kernel.failpoints import failpoint
from proto.errors import Code, CrispError
from runtime import cgroup_end, limits
from runtime.lifecycle import ContainerState

if TYPE_CHECKING:
    from runtime.node import Container, Node

ENDED = frozenset((ContainerState.EXITED, ContainerState.CREATING))


async def stop(node: Node, reference: str, grace_seconds: int) -> None:
    """Ask the container to end, then kill it. Success if there is no such container or it ended before."""
    container = node.find_container(reference)
    if container is None:
        return
    if container.record.state is ContainerState.RUNNING and grace_seconds > 0:
        await _ask(container, grace_seconds)
    await kill(node, container)


async def _ask(container: Container, grace_seconds: int) -> None:
    """Send the stop signal and wait; takes no lock, so that a second stop with a shorter grace is not held up."""
    if container.shim is None:
        return
    try:
        await container.shim.signal(container.record.stop_signal or signal.SIGTERM)
    except CrispError:
        return  # it ended meanwhile, or cannot be asked: the kill settles it
    failpoint("container.stopping")
    try:
        await asyncio.wait_for(container.exited.wait(), grace_seconds)
    except TimeoutError:
        return


async def kill(node: Node, container: Container) -> None:
    """End everything in the container's cgroup and wait until the exit is recorded.

    Raises DEADLINE_EXCEEDED, naming the processes, if they do not die: they hang in the kernel.
    """
    async with container.lock:
        if container.record.state in ENDED:
            return
        if container.shim is not None:
            try:
                await container.shim.kill()
            except CrispError:
                pass  # the shim is going: its watcher settles the rest
        try:
            await asyncio.wait_for(container.exited.wait(), limits.KILL_SECONDS)
        except TimeoutError:
            group = node.host.hierarchies.group(container.record.cgroup)
            stuck = ", ".join(cgroup_end.describe(pid) for pid in sorted(group.procs()))
            raise CrispError(
                Code.DEADLINE_EXCEEDED,
                f"container {container.record.id} does not end: {stuck or 'no process left'}",
            ) from None
