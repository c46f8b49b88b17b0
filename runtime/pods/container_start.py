"""StartContainer."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

from kernel.failpoints import failpoint
from proto.errors import CrispError, failed_precondition
from runtime import lifecycle, limits
from runtime.lifecycle import Event, SandboxState
from runtime.pods import plugin_hooks, restore

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container
    from runtime.shims.client import ShimClient


async def start(node: Node, reference: str) -> None:
    """Run a created container; its log file exists on return.

    A container that cannot be started is not left CREATED: it is EXITED with the reason StartError, as the kubelet expects.
    One that a plugin does not want to be started stays as it was: the next call asks again.
    """
    container = node.container(reference)
    async with AsyncExitStack() as stack:
        if container.record.restored_from:
            await stack.enter_async_context(container.sandbox.lock)  # one after the other: see restore.begin
        await stack.enter_async_context(container.lock)
        record = container.record
        lifecycle.check(record.state, Event.START, record.id)
        if container.sandbox.record.state is not SandboxState.READY:
            raise failed_precondition(f"sandbox {record.sandbox_id} is not ready any more")
        shim = container.shim
        if shim is None:
            raise failed_precondition(f"container {record.id} has no shim any more: {record.message}")
        directory = os.path.dirname(record.log_path)
        await asyncio.get_running_loop().run_in_executor(node.blocking, partial(os.makedirs, directory, exist_ok=True))
        await stack.enter_async_context(container.telling)
        await plugin_hooks.start(node, container)
        if record.restored_from:
            await restore.begin(node, container)
        container.starting = container.beginning = True
        try:
            started_at = await shim.start(log_path=record.log_path)
        except CrispError as error:
            container.starting = False
            await _end(container, shim)
            if record.restored_from:
                raise await restore.explained(node, container, error) from error
            raise
        finally:
            container.beginning = False
        record.started_at = started_at
        node.events.container_started(container)
        if record.restored_from:
            await restore.finish(node, container)
        await node.store.containers.note(record.id, record.document())
        failpoint("container.started")
        await plugin_hooks.started(node, container)


async def _end(container: Container, shim: ShimClient) -> None:
    """End a container that could not be started; on return its exit is recorded, unless it does not die."""
    with suppress(CrispError, TimeoutError):
        await shim.kill()
        await asyncio.wait_for(container.exited.wait(), limits.KILL_SECONDS)
