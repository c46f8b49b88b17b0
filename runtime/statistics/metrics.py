"""ListPodSandboxMetrics: the metrics of ready sandboxes and their living containers, read when they are asked for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

import structlog

from kernel import mounts, process_files
from kernel.cgroup_details import read_details
from proto import api_pb2 as cri
from runtime.lifecycle import SandboxState
from runtime.pods import sandbox_status
from runtime.statistics.metric_set import FileSystem, Writer
from runtime.statistics.stats import living, network_counters, pod_group, read_pod

if TYPE_CHECKING:
    from kernel.cgroup_stats import Usage
    from kernel.net_counters import Interface
    from runtime.pods.layer_usage import Counted
    from runtime.pods.node import Node
    from runtime.pods.objects import Container, Sandbox
    from runtime.statistics.stats import Stats

log = structlog.get_logger(__name__)

CHUNK: Final = 32
"""Sandboxes that are read at once; between two chunks other calls have their turn."""


class PodMetrics:
    """Metrics of one node."""

    def __init__(self, node: Node, stats: Stats) -> None:
        self._node = node
        self._stats = stats
        self._device = ""

    async def stream(self) -> AsyncIterator[cri.PodSandboxMetrics]:
        """All ready sandboxes, read while they are sent."""
        every = sandbox_status.select(self._node.sandboxes.values(), cri.PodSandboxFilter())
        sandboxes = [s for s in every if s.record.state is SandboxState.READY]
        loop = asyncio.get_running_loop()
        for start in range(0, len(sandboxes), CHUNK):
            chunk = sandboxes[start : start + CHUNK]
            layers = await self._stats.layers.of([c for s in chunk for c in living(s)])
            for message in await loop.run_in_executor(self._node.blocking, self._read, chunk, layers):
                yield message

    def _read(self, sandboxes: Sequence[Sandbox], layers: dict[str, Counted]) -> list[cri.PodSandboxMetrics]:
        """Runs in the pool."""
        networks = network_counters(self._node, sandboxes)
        system = self._file_system()
        found = []
        for sandbox in sandboxes:
            try:
                found.append(self._pod(sandbox, networks.get(sandbox.record.id, []), layers, system))
            except Exception as error:  # no pod can make the list of all fail
                log.warning("a pod's metrics cannot be read", sandbox=sandbox.record.id, error=str(error))
        return found

    def _pod(
        self, sandbox: Sandbox, network: list[Interface], layers: dict[str, Counted], system: FileSystem
    ) -> cri.PodSandboxMetrics:
        record = sandbox.record
        metadata = record.config.metadata
        group = pod_group(self._node.host.hierarchies, record)
        reading, details = read_pod(self._node, sandbox), read_details(group)
        message = cri.PodSandboxMetrics(pod_sandbox_id=record.id)
        writer = Writer(message.metrics, ("", f"/{group.path}", "", "", metadata.namespace, metadata.name))
        writer.usage(reading.usage, details)
        writer.devices(details)
        writer.specification(details.limits)
        writer.life(record.ready_at, group.oom_kills())
        writer.interfaces(network)
        for container, _, usage in reading.containers:
            target = message.container_metrics.add(container_id=container.record.id)
            self._container(target, container, usage, layers.get(container.record.id), system)
        return message

    def _container(
        self,
        target: cri.ContainerMetrics,
        container: Container,
        usage: Usage,
        layer: Counted | None,
        system: FileSystem,
    ) -> None:
        record, pod = container.record, container.sandbox.record.config.metadata
        group = self._node.host.hierarchies.group(record.cgroup)
        image = record.config.image.user_specified_image or record.config.image.image
        labels = (record.config.metadata.name, f"/{record.cgroup}", image, record.id, pod.namespace, pod.name)
        writer = Writer(target.metrics, labels)
        details, pids = read_details(group), group.procs()
        writer.usage(usage, details)
        writer.devices(details)
        writer.layer(layer.bytes if layer is not None else None, system)
        writer.processes(len(pids), details, process_files.count(pids), process_files.soft_limit_of_files(record.pid))
        writer.specification(details.limits)
        writer.life(record.started_at, group.oom_kills())

    def _file_system(self) -> FileSystem:
        path = str(self._node.paths.root)
        found = os.statvfs(path)
        self._device = self._device or os.fsdecode(mounts.holding(os.path.realpath(path)).source)
        return FileSystem(self._device, found.f_blocks * found.f_frsize, found.f_files, found.f_ffree)
