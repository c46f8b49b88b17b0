"""What NRI plugins make of a container: its configuration, what is recorded of it, and its resources later on.

adjust   before anything is derived from the OCI configuration: the record's resources and cgroup follow
settle   when the OCI runtime has made the container: scheduler and I/O priority, which older runtimes pass over
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel import scheduling
from proto.errors import failed_precondition
from runtime.nri import amounts, apply
from runtime.nri.errors import Refused
from runtime.pods import selinux

if TYPE_CHECKING:
    from proto import api_pb2 as cri
    from proto import nri_pb2 as nri
    from runtime.pods.node import Node
    from runtime.pods.objects import Container


async def adjust(
    node: Node, container: Container, spec: dict[str, Any], adjustment: nri.ContainerAdjustment
) -> dict[str, Any]:
    """The OCI configuration with what plugins ask for. Raises `Refused`; then nothing has changed.

    The record is stored anew if it has: whoever undoes a create that was cut off has to know the control group.
    """
    if not adjustment.ByteSize():
        return spec
    record = container.record
    handler = node.handlers.get(container.sandbox.record.handler)
    here = apply.Circumstances(
        container_id=record.id,
        config=record.config,
        resources=record.resources,
        host=node.host,
        handler=handler.name,
        features=handler.features,
        cdi_spec_dirs=[Path(directory) for directory in node.config.containers.cdi_spec_dirs],
        blockio_config_file=node.config.containers.blockio_config_file,
    )
    made = await asyncio.get_running_loop().run_in_executor(node.blocking, apply.adjusted, spec, adjustment, here)
    if made.cgroup:
        _require_alone(node, container, made.cgroup)
        record.cgroup = made.cgroup
    record.resources = made.resources
    await _relabel(node, container, made.relabel)
    await node.store.containers.put(record.id, record.document())
    return made.spec


def _require_alone(node: Node, container: Container, cgroup: str) -> None:
    """The processes of a container's group end with it, those of groups below too."""
    for other in node.containers.values():
        theirs = other.record.cgroup
        if other is not container and theirs and (f"{theirs}/".startswith(f"{cgroup}/") or cgroup.startswith(f"{theirs}/")):
            raise Refused(
                f"what NRI plugins ask for cannot be given to container {container.record.config.metadata.name}: "
                f"its control group {cgroup} would hold, or be held by, that of container {other.record.id}"
            )


async def _relabel(node: Node, container: Container, paths: tuple[str, ...]) -> None:
    labels = selinux.labels_of(node, container)
    if labels is not None and paths:
        await selinux.relabel_paths(node.fork_server, paths, labels)


async def settle(node: Node, container: Container, spec: dict[str, Any]) -> None:
    """FAILED_PRECONDITION for what the kernel does not give."""
    process = spec["process"]
    if "scheduler" in process or "ioPriority" in process:
        await asyncio.get_running_loop().run_in_executor(node.blocking, _schedule, container.record.pid, process)


def _schedule(pid: int, process: dict[str, Any]) -> None:
    """Of the runtime's init, which becomes the container's process."""
    try:
        if (priority := process.get("ioPriority")) is not None:
            scheduling.set_io_priority(pid, priority["class"], priority.get("priority", 0))
        if (scheduler := process.get("scheduler")) is not None:
            scheduling.set_scheduler(pid, scheduler)
    except (OSError, KeyError) as error:
        raise failed_precondition(f"scheduler or I/O priority cannot be set: {error}") from error


async def changes(
    node: Node, asked: nri.LinuxResources, base: cri.LinuxContainerResources
) -> tuple[cri.LinuxContainerResources, dict[str, Any]]:
    """`base` with what plugins ask for laid over it, and OCI's `resources` that CRI has no fields for. Raises `Refused`."""

    def made() -> tuple[cri.LinuxContainerResources, dict[str, Any]]:
        return amounts.changes(base, asked, node.host, node.config.containers.blockio_config_file)

    return await asyncio.get_running_loop().run_in_executor(node.blocking, made)
