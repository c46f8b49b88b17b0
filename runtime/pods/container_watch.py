"""Watching containers: one task per living container waits for its shim to tell of the exit, or for the shim to be gone.

    shim tells of the exit ──▶ finished_at, exit code and reason are recorded, `exited` is set
    shim's socket closes   ──▶ `gone` is set: what the container had of the kernel is given back

If the socket closes and there is no exit record, the shim was killed. Then its container is ended too, at once, and the
record says why: nobody else could tell its exit code or keep its log.

A shim that lives but does not answer a daemon that has just started is asked again, until it does or is gone: the host may
be short of everything, and the container is well.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from proto.errors import CrispError
from runtime import limits
from runtime.host import cgroup_end
from runtime.lifecycle import ContainerState
from runtime.pods import container_start
from runtime.records import CLOCK
from runtime.shims.client import ShimClient, read_exit_record, shim_alive

if TYPE_CHECKING:
    from runtime.pods.node import Container, Node
    from shim.exit_record import ExitRecord

log = structlog.get_logger(__name__)

LOST_EXIT_CODE: Final = 255
"""Of a container whose real exit code nobody knows."""


def watch(node: Node, container: Container) -> None:
    """Start the watcher of a container whose shim lives."""
    container.watcher = asyncio.create_task(_watch(node, container), name=f"watch {container.record.id[:13]}")


async def _watch(node: Node, container: Container) -> None:
    bundle = str(node.paths.bundle(container.record.id))
    shim = container.shim or await _answer(container, bundle)
    exit_record = await shim.wait() if shim is not None else read_exit_record(bundle)
    if exit_record is None:
        await lost(node, container, "its shim was killed")
    else:
        await settle(node, container, exit_record)
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


async def settle(node: Node, container: Container, exit_record: ExitRecord) -> None:
    """Enter an exit record into the container's record."""
    record = container.record
    if not record.finished_at:
        if exit_record.started_at and not record.started_at:
            record.started_at = max(exit_record.started_at, record.created_at + 1)  # as StartContainer has it
        if record.started_at:
            container_start.started(node, container)
        record.exit_code = exit_record.exit_code
        record.reason, record.message = _reason(exit_record)
        record.finished_at = max(exit_record.finished_at, record.started_at + 1, record.created_at + 1)
        node.events.container_stopped(container)  # in one step with finished_at: no status may show the end before its event
        await node.store.containers.note(record.id, record.document())
    container.exited.set()


def _reason(exit_record: ExitRecord) -> tuple[str, str]:
    if exit_record.oom_killed:
        return "OOMKilled", ""
    if exit_record.reason == "StartError":
        return "StartError", "the OCI runtime could not start the container's process"
    return "Completed" if exit_record.exit_code == 0 else "Error", exit_record.reason


async def lost(node: Node, container: Container, why: str) -> None:
    """End a container that has no shim any more, and say so in its record.

    If its processes do not die, its state is UNKNOWN; stopping or removing it tries again.
    """
    record = container.record
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(node.blocking, cgroup_end.end_container, node.host.hierarchies, record)
    except (CrispError, OSError) as error:
        log.error("container lost, and it does not end", container=record.id, why=why, error=str(error))
        record.lost_at = record.lost_at or CLOCK.now()
        record.message = f"{why}, and the container could not be ended: {error}"
        await node.store.containers.note(record.id, record.document())
        container.exited.set()
        return
    if record.state in (ContainerState.RUNNING, ContainerState.CREATED, ContainerState.UNKNOWN):
        node.lost_containers += 1
        log.error("container lost", container=record.id, why=why)
        record.exit_code = LOST_EXIT_CODE
        record.reason = "Error"
        record.message = f"the container was ended because {why}; its exit code is not known"
        record.finished_at = max(CLOCK.now(), record.started_at + 1)
        node.events.container_stopped(container)  # in one step with finished_at: no status may show the end before its event
        await node.store.containers.note(record.id, record.document())
    container.exited.set()
    container.gone.set()
