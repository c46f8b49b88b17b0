"""Watching containers: one task per living container waits for its shim to tell of the exit, or for the shim to be gone.

    shim tells of the exit ──▶ `container_end.settle`: recorded, `exited` is set
    shim's socket closes   ──▶ `gone` is set: what the container had of the kernel is given back
    closed and no record   ──▶ `container_end.lost`

A shim that lives but does not answer a daemon that has just started is asked again, until it does or is gone: the host may
be short of everything, and the container is well.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from proto.errors import CrispError
from runtime import limits
from runtime.pods import container_end
from runtime.shims.client import ShimClient, read_exit_record, shim_alive

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container

log = structlog.get_logger(__name__)


def watch(node: Node, container: Container) -> None:
    """Start the watcher of a container whose shim lives."""
    container.watcher = asyncio.create_task(_watch(node, container), name=f"watch {container.record.id[:13]}")


async def _watch(node: Node, container: Container) -> None:
    bundle = str(node.paths.bundle(container.record.id))
    shim = container.shim or await _answer(container, bundle)
    exit_record = await shim.wait() if shim is not None else read_exit_record(bundle)
    if exit_record is None:
        await container_end.lost(node, container, "its shim was killed")
    else:
        await container_end.settle(node, container, exit_record)
    if shim is not None:
        await shim.gone()
        shim.close()
    container.shim = None
    if exit_record is not None:
        container.gone.set()


async def _answer(container: Container, bundle: str) -> ShimClient | None:
    """Ask a silent shim until it answers; None once it is gone."""
    while shim_alive(bundle):
        try:
            container.shim = await ShimClient.connect(bundle)
        except CrispError as error:
            log.warning("shim does not answer", container=container.record.id, error=error.message)
            await asyncio.sleep(limits.SHIM_RETRY_SECONDS)
        else:
            log.info("shim answers", container=container.record.id)
            return container.shim
    return None
