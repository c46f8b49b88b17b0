"""Pods and containers that are removed when they have ended: docker's --rm, by the annotation io.crisp.remove-at-end.

Whoever made them may be gone by then, so it is the daemon that does it. What has to go is derived at each look from what is
recorded: a daemon that was started anew goes on with it. While somebody follows the pod it stays: who reads its output
slowly wants its exit code at the end (`host.followers`).
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final

import structlog

from runtime.host.followers import is_followed
from runtime.lifecycle import ContainerState, SandboxState
from runtime.oci import asked
from runtime.pods import container_remove, sandbox_stop
from runtime.pods.objects import Sandbox
from runtime.records import CLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.pods.node import Node
    from runtime.pods.objects import Container

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 2.0

KEPT_SECONDS: Final = 10
"""That it stays: somebody may want to know the exit code, or be about to create or start a container."""


async def follow(node: Node) -> None:
    """Look, and remove, until the daemon ends; nothing is done while there is nothing of this kind."""
    removing: dict[str, asyncio.Task[None]] = {}
    try:
        while True:
            node.to_be_removed.clear()
            if not any(map(_asks, node.sandboxes.values())) and not any(map(_asks, node.containers.values())):
                await node.to_be_removed.wait()
            await asyncio.sleep(LOOK_SECONDS)
            removing = {key: task for key, task in removing.items() if not task.done()}
            for it in _over(node, set(removing)):
                removing[it.record.id] = asyncio.create_task(_remove(node, it))
    finally:
        for task in removing.values():
            task.cancel()
        await asyncio.gather(*removing.values(), return_exceptions=True)


async def _remove(node: Node, it: Sandbox | Container) -> None:
    """One that does not end now, or is followed yet, is tried again at the next look."""
    directory = (it if isinstance(it, Sandbox) else it.sandbox).record.config.log_directory
    before = _before()
    try:
        if await asyncio.get_running_loop().run_in_executor(node.blocking, is_followed, directory):
            return
        if isinstance(it, Sandbox):  # while it waits for the lock a container may be made in it
            await sandbox_stop.remove(node, it.record.id, functools.partial(_is_over, it, before))
        elif _last(it) < before:
            await container_remove.remove_container(node, it)
    except Exception as error:
        log.warning("what has ended cannot be removed yet", id=it.record.id, error=repr(error))


def _before() -> int:
    return CLOCK.now() - KEPT_SECONDS * 1_000_000_000


def _over(node: Node, under_way: set[str]) -> Iterator[Sandbox | Container]:
    before = _before()
    for sandbox in list(node.sandboxes.values()):
        if sandbox.record.id not in under_way and _is_over(sandbox, before):
            yield sandbox
            continue
        for container in list(sandbox.containers.values()):
            if container.record.id not in under_way and _asks(container) and _last(container) < before:
                yield container


def _is_over(sandbox: Sandbox, before: int) -> bool:
    """Whether nothing has run in it, and nothing was made in it, since then."""
    record = sandbox.record
    if record.state is SandboxState.CREATING or not _asks(sandbox):
        return False
    return max(record.ready_at, *map(_last, sandbox.containers.values()), 0) < before


def is_over(sandbox: Sandbox) -> bool:
    """Whether it is removed at its end and has come to that, though it may be kept for a while."""
    record, containers = sandbox.record, sandbox.containers.values()
    if not _asks(sandbox) or record.state is SandboxState.CREATING:
        return False
    if record.state is SandboxState.READY and not containers:  # its maker is about to create one
        return _is_over(sandbox, _before())
    return not any(_last(it) >= 1 << 63 or it.record.state is ContainerState.CREATED for it in containers)


def _asks(it: Sandbox | Container) -> bool:
    return asked.removed_at_end(it.record.config.annotations)


def _last(container: Container) -> int:
    """When it has ended, or was made if it does not run yet; the end of days if it runs or is about to."""
    record = container.record
    if record.state in (ContainerState.CREATING, ContainerState.RUNNING) or container.beginning or container.starting:
        return 1 << 63
    return max(record.made_at, record.finished_at, record.lost_at)
