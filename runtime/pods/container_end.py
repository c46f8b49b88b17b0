"""The end of a container, entered into its record: as its shim tells it, or as it must be told for a shim that is gone.

A container whose shim was killed is ended too, at once, and the record says why: nobody else could tell its exit code or
keep its log.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from proto.errors import CrispError
from runtime.host import cgroup_end
from runtime.lifecycle import ContainerState
from runtime.pods import plugin_hooks
from runtime.records import CLOCK
from shim import log_repair

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container
    from shim.exit_record import ExitRecord

log = structlog.get_logger(__name__)

LOST_EXIT_CODE: Final = 255
"""Of a container whose real exit code nobody knows."""


async def settle(node: Node, container: Container, exit_record: ExitRecord) -> None:
    """Enter an exit record into the container's record."""
    record = container.record
    if not record.finished_at:
        if exit_record.started_at and not record.started_at:
            record.started_at = exit_record.started_at
        if record.started_at:
            node.events.container_started(container)
        record.exit_code = exit_record.exit_code
        record.reason, record.message = _reason(exit_record)
        record.finished_at = max(exit_record.finished_at, record.started_at)
        node.events.container_stopped(container)  # in one step with finished_at: no status may show the end before its event
        plugin_hooks.container_stopped(node, container)
        container.exited.set()  # who waits for the end does not wait for the disk
        await node.store.containers.note(record.id, record.document())
    container.exited.set()


def _reason(exit_record: ExitRecord) -> tuple[str, str]:
    if exit_record.oom_killed:
        return "OOMKilled", ""
    if exit_record.reason == "StartError":
        return "StartError", exit_record.message or "the OCI runtime could not start the container's process"
    return "Completed" if exit_record.exit_code == 0 else "Error", exit_record.reason


async def lost(node: Node, container: Container, why: str, *, said: bool = False) -> None:
    """End a container that has no shim any more, and say so in its record, and in the log unless that is `said` already.

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
        await loop.run_in_executor(node.blocking, log_repair.complete, record.log_path)
        if not said:
            log.error("container lost", container=record.id, why=why)
        record.exit_code = LOST_EXIT_CODE
        record.reason = "Error"
        record.message = f"the container was ended because {why}; its exit code is not known"
        record.finished_at = max(CLOCK.now(), record.started_at)
        node.events.container_stopped(container)  # in one step with finished_at: no status may show the end before its event
        plugin_hooks.container_stopped(node, container)
        await node.store.containers.note(record.id, record.document())
    container.exited.set()
    container.gone.set()
