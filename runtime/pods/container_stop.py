"""StopContainer: the stop signal, the grace period, then the whole cgroup.

Stopping looks at what is, not at events: a stop that is repeated after a crash takes up where the first was.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from kernel.failpoints import failpoint
from proto.errors import Code, CrispError
from runtime import limits
from runtime.host import cgroup_end
from runtime.lifecycle import ContainerState
from runtime.pods import container_end, plugin_hooks
from runtime.shims import client

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container

PATIENCE_SECONDS: Final = 0.5
"""What a create or start that is under way may still take when its container is to end."""

ENDED: Final = frozenset((ContainerState.EXITED, ContainerState.CREATING))


async def stop(node: Node, reference: str, grace_seconds: int) -> None:
    """Ask the container to end, then kill it. Success if there is no such container or it ended before."""
    container = node.find_container(reference)
    if container is None:
        return
    if container.record.state is ContainerState.RUNNING and grace_seconds > 0:
        await _ask(container, grace_seconds)
    await kill(node, container)
    await plugin_hooks.stop_answered(container)


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
    async with locked(container.lock, [container]):
        if container.record.state in ENDED:
            return
        if not await _by_shim(container, container.exited) or container.record.state not in ENDED:
            await _by_force(node, container, container.exited)


@asynccontextmanager
async def locked(lock: asyncio.Lock, containers: Collection[Container]) -> AsyncIterator[None]:
    """Hold a lock, for the end of these containers.

    A create or start that holds it for long, because a hook or a volume hangs, is killed with the OCI runtime and its
    children, and then fails: who ends a container does not wait for its beginning.
    """
    acquiring = asyncio.ensure_future(lock.acquire())
    try:
        while not acquiring.done():
            await asyncio.wait({acquiring}, timeout=PATIENCE_SECONDS)
            for container in () if acquiring.done() else list(containers):
                if container.beginning and container.shim is not None:
                    with suppress(CrispError):
                        await container.shim.kill()
        yield
    finally:
        if acquiring.done() and not acquiring.cancelled():
            lock.release()
        acquiring.cancel()


async def dismiss(node: Node, container: Container) -> None:
    """Have the shim of a container that has ended leave: it may wait for clients that are attached.

    The caller holds the container's lock. Raises as `kill`.
    """
    if container.watcher is not None and not await _by_shim(container, container.gone):
        await _by_force(node, container, container.gone)


async def _by_shim(container: Container, done: asyncio.Event) -> bool:
    """Have the shim kill the container; whether that led to `done`."""
    try:
        async with asyncio.timeout(limits.KILL_SECONDS):
            if container.shim is not None:
                try:
                    await container.shim.kill()
                except CrispError as error:
                    if error.code is not Code.UNAVAILABLE:
                        return False
                    # It is going: its watcher settles the rest.
            elif container.watcher is None:
                return False
            await done.wait()
    except TimeoutError:
        return False
    return True


async def _by_force(node: Node, container: Container, done: asyncio.Event) -> None:
    """Do a shim's work that it does not do, because it hangs or is not there; then end the shim."""
    record = container.record
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(node.blocking, cgroup_end.kill_container, node.host.hierarchies, record)
    if container.watcher is None or container.watcher.done():
        await container_end.lost(node, container, "its shim is gone")
        return
    await loop.run_in_executor(node.blocking, client.kill_shim, str(node.paths.bundle(record.id)))
    try:
        await asyncio.wait_for(done.wait(), limits.KILL_SECONDS)
    except TimeoutError:
        raise CrispError(Code.DEADLINE_EXCEEDED, f"the shim of container {record.id} does not leave") from None
