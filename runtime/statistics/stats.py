"""ContainerStats, PodSandboxStats and their lists: read from the kernel when somebody asks, and never else.

Reading a container is a handful of small files, so a list reads them one after the other in one thread of the pool:
more threads would only contend for the interpreter. The files stay open while somebody asks again and again. The rate of
CPU use needs two looks; it is there from the second one on, measured since the look before.

What has ended has no cgroup any more: lists leave it out, and ContainerStats tells only of its writable layer.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from kernel import cgroups, net_counters
from kernel.cgroup_stats import REMEMBERED, Memory, Pressure, Reader, Usage, read_usage
from kernel.cgroups import Mode
from kernel.kept_files import KeptFiles
from proto import api_pb2 as cri
from proto.errors import not_found
from runtime import listing
from runtime.lifecycle import ContainerState, SandboxState
from runtime.listing import Encoded
from runtime.pods import container_status, sandbox_status
from runtime.pods.layer_usage import Counted, LayerUsage
from shim import tracking

if TYPE_CHECKING:
    from kernel.cgroups import Group, Hierarchies
    from kernel.net_counters import Interface
    from runtime.pods.node import Node
    from runtime.pods.objects import Container, Sandbox
    from runtime.records import ContainerRecord, SandboxRecord

log = structlog.get_logger(__name__)

RATE_SECONDS: Final = (0.1, 120.0)
"""Between two looks that give a rate: sooner the last rate is told again, later there is none."""
_SHORTEST, _LONGEST = (int(seconds * 1e9) for seconds in RATE_SECONDS)

KEEP_SECONDS: Final = 60.0
"""How long control files stay open that nobody asks for."""

CHUNK: Final = 128
"""Containers that one part of a stream is made of."""

LIVING: Final = frozenset((ContainerState.CREATED, ContainerState.RUNNING))

DEFAULT_INTERFACE: Final = "eth0"


class Look(NamedTuple):
    """CPU time of a container at a moment, both in nanoseconds, and the rate that was told then."""

    at: int
    cpu: int
    rate: int | None


@dataclass(frozen=True, slots=True)
class PodReading:
    """What was read of one sandbox."""

    at: int
    usage: Usage
    processes: int
    containers: list[tuple[Container, int, Usage]]
    """With the moment of each look, in nanoseconds since the epoch."""


class Stats:
    """Statistics of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._looks: dict[str, Look] = {}
        self._attributes: dict[str, bytes] = {}
        """By container: the encoded field of its statistics that does not change."""
        self._files = KeptFiles()
        self._closing: asyncio.TimerHandle | None = None
        self.layers = LayerUsage(node)

    def close(self) -> None:
        """End what goes on in the background."""
        self.layers.close()
        if self._closing is not None:
            self._closing.cancel()
        with self._files as files:
            files.close()

    def _close_unused(self) -> None:
        with self._files as files:  # a reader holds them for milliseconds
            files.close_unused(KEEP_SECONDS)
            left = len(files)
        self._closing = None
        if left:
            self._keep()

    def _keep(self) -> None:
        """See to it that files are closed after their last use."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().call_later(KEEP_SECONDS, self._close_unused)

    # --- containers ----------------------------------------------------------------------------------------------

    async def container(self, reference: str) -> cri.ContainerStats:
        """One container."""
        container = self._node.container(reference)
        if container.record.state is ContainerState.CREATING:
            raise not_found(f"container {container.record.id} is being made")
        return cri.ListContainerStatsResponse.FromString((await self._containers([container])).data).stats[0]

    async def containers(self, criteria: cri.ContainerStatsFilter) -> Encoded:
        """Living containers that match: a ListContainerStatsResponse."""
        return await self._containers(self._select(criteria))

    async def stream_containers(self, criteria: cri.ContainerStatsFilter) -> AsyncIterator[cri.ContainerStats]:
        """As `containers`, read while they are sent."""
        selected = self._select(criteria)
        for start in range(0, len(selected), CHUNK):
            part = await self._containers(selected[start : start + CHUNK])
            for message in cri.ListContainerStatsResponse.FromString(part.data).stats:
                yield message

    def _select(self, criteria: cri.ContainerStatsFilter) -> list[Container]:
        wanted = cri.ContainerFilter(
            id=criteria.id, pod_sandbox_id=criteria.pod_sandbox_id, label_selector=criteria.label_selector
        )
        return [c for c in container_status.select(self._node.containers.values(), wanted) if c.record.state in LIVING]

    async def _containers(self, containers: Sequence[Container]) -> Encoded:
        layers = await self.layers.of(containers)
        mountpoint = (await self._node.images.fs_info()).mountpoint
        loop = asyncio.get_running_loop()
        self._keep()
        return await loop.run_in_executor(self._node.blocking, self._read, containers, layers, mountpoint)

    def _read(self, containers: Iterable[Container], layers: dict[str, Counted], mountpoint: str) -> Encoded:
        """Runs in the pool."""
        hierarchies = self._node.host.hierarchies
        message = cri.ContainerStats()
        with self._files as files:

            def build(container: Container) -> bytes:
                record = container.record
                message.Clear()
                usage = container_usage(hierarchies, record, files.read)
                self._fill_moment(message, record, time.time_ns(), usage, layers.get(record.id), mountpoint)
                # Parts of one message: what is in several of them, a field of a field each, is one to who reads it.
                return listing.entry(self._encoded_attributes(record), _unchanged(usage), message.SerializeToString())

            answer = Encoded(b"".join(listing.each(containers, build, lambda c: c.record.id)))
        self._forget()
        return answer

    def _encoded_attributes(self, record: ContainerRecord) -> bytes:
        attributes = self._attributes.get(record.id)
        if attributes is None:
            message = cri.ContainerStats(attributes=_container_attributes(record))
            attributes = self._attributes[record.id] = message.SerializeToString()
        return attributes

    def _fill_moment(
        self,
        message: cri.ContainerStats,
        record: ContainerRecord,
        now: int,
        usage: Usage,
        layer: Counted | None,
        mountpoint: str,
    ) -> None:
        """What another look would say otherwise of a container that does nothing."""
        if usage.cpu is not None:
            _fill_cpu(message.cpu, now, usage.cpu, self.rate(record.id, usage.cpu))
        if usage.memory is not None:
            message.memory.timestamp = now
            if usage.memory.swap is not None:
                message.swap.timestamp = now
        if usage.io_pressure is not None:
            message.io.timestamp = now
        if layer is not None:
            disk = message.writable_layer
            disk.timestamp = layer.at
            disk.fs_id.mountpoint = mountpoint
            disk.used_bytes.value = layer.bytes
            disk.inodes_used.value = layer.inodes

    def rate(self, identity: str, cpu: int) -> int | None:
        """Nanoseconds of CPU time per second since the last look; None at the first one."""
        now = time.monotonic_ns()
        before = self._looks.get(identity)
        rate = None
        if before is not None and cpu >= before.cpu:
            if now - before.at < _SHORTEST:
                return before.rate
            if now - before.at <= _LONGEST:
                rate = (cpu - before.cpu) * 1_000_000_000 // (now - before.at)
        self._looks[identity] = Look(now, cpu, rate)
        return rate

    def _forget(self) -> None:
        """Drop what is kept of what is gone, once it is more than what can be of use."""
        node = self._node
        if len(self._looks) + len(self._attributes) > 64 + 4 * (len(node.containers) + len(node.sandboxes)):
            for kept in (self._looks, self._attributes):
                for identity in list(kept):
                    if identity not in node.containers and identity not in node.sandboxes:
                        kept.pop(identity, None)

    # --- sandboxes -----------------------------------------------------------------------------------------------

    async def sandbox(self, reference: str) -> cri.PodSandboxStats:
        """One sandbox."""
        sandbox = self._node.sandbox(reference)
        if sandbox.record.state is SandboxState.CREATING:
            raise not_found(f"sandbox {sandbox.record.id} is being made")
        return (await self._sandboxes([sandbox]))[0]

    async def sandboxes(self, criteria: cri.PodSandboxStatsFilter) -> list[cri.PodSandboxStats]:
        """Ready sandboxes that match."""
        return await self._sandboxes(self._select_sandboxes(criteria))

    async def stream_sandboxes(self, criteria: cri.PodSandboxStatsFilter) -> AsyncIterator[cri.PodSandboxStats]:
        """As `sandboxes`, read while they are sent."""
        selected = self._select_sandboxes(criteria)
        for start in range(0, len(selected), CHUNK):
            for message in await self._sandboxes(selected[start : start + CHUNK]):
                yield message

    def _select_sandboxes(self, criteria: cri.PodSandboxStatsFilter) -> list[Sandbox]:
        wanted = cri.PodSandboxFilter(id=criteria.id, label_selector=criteria.label_selector)
        return [
            s for s in sandbox_status.select(self._node.sandboxes.values(), wanted) if s.record.state is SandboxState.READY
        ]

    async def _sandboxes(self, sandboxes: Sequence[Sandbox]) -> list[cri.PodSandboxStats]:
        layers = await self.layers.of([c for s in sandboxes for c in living(s)])
        mountpoint = (await self._node.images.fs_info()).mountpoint
        loop = asyncio.get_running_loop()
        self._keep()
        return await loop.run_in_executor(self._node.blocking, self._read_sandboxes, sandboxes, layers, mountpoint)

    def _read_sandboxes(
        self, sandboxes: Sequence[Sandbox], layers: dict[str, Counted], mountpoint: str
    ) -> list[cri.PodSandboxStats]:
        """Runs in the pool."""
        networks = network_counters(self._node, sandboxes)

        def build(sandbox: Sandbox) -> cri.PodSandboxStats:
            message = cri.PodSandboxStats(attributes=_sandbox_attributes(sandbox.record))
            reading = self._reading(sandbox) if sandbox.record.state is SandboxState.READY else None
            if reading is not None:
                self._fill_pod(message.linux, sandbox, reading, networks.get(sandbox.record.id))
                for container, at, usage in reading.containers:
                    record = container.record
                    target = message.linux.containers.add()
                    target.MergeFromString(self._encoded_attributes(record))
                    self._fill_moment(target, record, at, usage, layers.get(record.id), mountpoint)
                    target.MergeFromString(_unchanged(usage))
            return message

        found = list(listing.each(sandboxes, build, lambda s: s.record.id))
        self._forget()
        return found

    def _reading(self, sandbox: Sandbox) -> PodReading | None:
        """None if it cannot be read: no pod can make the list of all fail."""
        try:
            with self._files as files:
                return read_pod(self._node, sandbox, files.read)
        except OSError as error:
            log.warning("a pod's statistics cannot be read", sandbox=sandbox.record.id, error=str(error))
            return None

    def _fill_pod(
        self, linux: cri.LinuxPodSandboxStats, sandbox: Sandbox, reading: PodReading, network: list[Interface] | None
    ) -> None:
        now, usage = reading.at, reading.usage
        if usage.cpu is not None:
            _fill_cpu(linux.cpu, now, usage.cpu, self.rate(sandbox.record.id, usage.cpu))
            if usage.cpu_pressure is not None:
                linux.cpu.psi.CopyFrom(_pressure(usage.cpu_pressure))
            linux.process.timestamp = now
            linux.process.process_count.value = reading.processes
        if usage.memory is not None:
            linux.memory.timestamp = now
            _fill_memory(linux.memory, usage.memory, usage.memory_pressure)
        if usage.io_pressure is not None:
            linux.io.timestamp = now
            linux.io.psi.CopyFrom(_pressure(usage.io_pressure))
        if network is not None:
            linux.network.timestamp = now
            for interface in network:
                is_default = interface.name == DEFAULT_INTERFACE
                target = linux.network.default_interface if is_default else linux.network.interfaces.add()
                target.name = interface.name
                target.rx_bytes.value = interface.rx_bytes
                target.rx_errors.value = interface.rx_errors
                target.tx_bytes.value = interface.tx_bytes
                target.tx_errors.value = interface.tx_errors


def container_usage(hierarchies: Hierarchies, record: ContainerRecord, reader: Reader | None = None) -> Usage:
    """What the container uses now; all None once it has ended. Blocks."""
    pressure = ""
    if hierarchies.mode is Mode.HYBRID:
        pressure = os.path.join(hierarchies.unified, tracking.FOLDER, record.id)
    return read_usage(hierarchies.group(record.cgroup), pressure, reader)


def pod_group(hierarchies: Hierarchies, record: SandboxRecord) -> Group:
    """The cgroup that holds the pod: the kubelet's, or one that crisp made."""
    return hierarchies.group(cgroups.parent_path(record.cgroup_parent))


def living(sandbox: Sandbox) -> list[Container]:
    """The sandbox's containers that have a cgroup."""
    return [c for c in list(sandbox.containers.values()) if c.record.state in LIVING]


def read_pod(node: Node, sandbox: Sandbox, reader: Reader | None = None) -> PodReading:
    """Read the sandbox's cgroup and those of its containers. Blocks."""
    hierarchies = node.host.hierarchies
    group = pod_group(hierarchies, sandbox.record)
    usage, at = read_usage(group, "", reader), time.time_ns()
    containers = [(c, time.time_ns(), container_usage(hierarchies, c.record, reader)) for c in living(sandbox)]
    return PodReading(at, usage, len(group.procs()), containers)


def network_counters(node: Node, sandboxes: Iterable[Sandbox]) -> dict[str, list[Interface]]:
    """Interfaces by sandbox, for those that have a network of their own. Blocks."""
    paths = {
        str(node.paths.namespace(s.record.id, "net")): s.record.id
        for s in sandboxes
        if s.record.state is SandboxState.READY
        and s.record.config.linux.security_context.namespace_options.network == cri.POD
    }
    return {paths[path]: found for path, found in net_counters.read_many(paths).items()}


def _container_attributes(record: ContainerRecord) -> cri.ContainerAttributes:
    config = record.config
    return cri.ContainerAttributes(
        id=record.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
    )


def _sandbox_attributes(record: SandboxRecord) -> cri.PodSandboxAttributes:
    config = record.config
    return cri.PodSandboxAttributes(
        id=record.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
    )


def _fill_cpu(message: cri.CpuUsage, now: int, used: int, rate: int | None) -> None:
    message.timestamp = now
    message.usage_core_nano_seconds.value = used
    if rate is not None:
        message.usage_nano_cores.value = rate


def _fill_memory(message: cri.MemoryUsage, memory: Memory, pressure: Pressure | None) -> None:
    """All but when that was."""
    message.working_set_bytes.value = memory.working_set
    if memory.limit is not None:
        message.available_bytes.value = max(0, memory.limit - memory.working_set)
    message.usage_bytes.value = memory.usage
    message.rss_bytes.value = memory.rss
    message.page_faults.value = memory.page_faults
    message.major_page_faults.value = memory.major_page_faults
    if pressure is not None:
        message.psi.CopyFrom(_pressure(pressure))


def _fill_swap(message: cri.SwapUsage, memory: Memory) -> None:
    if memory.swap is None:
        return
    message.swap_usage_bytes.value = memory.swap
    if memory.swap_limit is not None:
        message.swap_available_bytes.value = max(0, memory.swap_limit - memory.swap)


def _unchanged(usage: Usage) -> bytes:
    """What of a look stays as it is while a container does nothing, encoded as part of a ContainerStats."""
    cpu_pressure = None if usage.cpu is None else usage.cpu_pressure
    return _encoded(usage.memory, cpu_pressure, usage.memory_pressure, usage.io_pressure)


@functools.lru_cache(REMEMBERED)
def _encoded(memory: Memory | None, of_cpu: Pressure | None, of_memory: Pressure | None, of_io: Pressure | None) -> bytes:
    message = cri.ContainerStats()
    if of_cpu is not None:
        message.cpu.psi.CopyFrom(_pressure(of_cpu))
    if memory is not None:
        _fill_memory(message.memory, memory, of_memory)
        _fill_swap(message.swap, memory)
    if of_io is not None:
        message.io.psi.CopyFrom(_pressure(of_io))
    return message.SerializeToString()


@functools.lru_cache(256)
def _pressure(pressure: Pressure) -> cri.PsiStats:
    """As a message that is only ever copied: idle groups are all alike."""
    some, full = (cri.PsiData(Total=s.total, Avg10=s.avg10, Avg60=s.avg60, Avg300=s.avg300) for s in pressure)
    return cri.PsiStats(Some=some, Full=full)
