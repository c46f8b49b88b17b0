"""The metrics that the kubelet serves in place of cAdvisor's: their names, help and labels, and how they are filled.

A metric is written with its Family, never with its name: so what is delivered was declared, with as many labels. The kubelet
adds no labels of its own to what it gets here, so each metric carries the six that dashboards expect of cAdvisor. Values
are whole numbers, as the protocol has them: counters of seconds lose their fraction.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kernel.cgroup_details import Details, Limits, device_name
from kernel.cgroup_stats import Pressure, Usage
from kernel.net_counters import Interface
from kernel.process_files import OpenFiles
from proto import api_pb2 as cri

BASE_LABELS: Final = ("container", "id", "image", "name", "namespace", "pod")
"""Container name ("" for the pod), cgroup path, image, container id ("" for the pod), namespace and name of the pod."""

SECOND: Final = 1_000_000_000
USECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: what it is called and what it is labelled by, beside BASE_LABELS."""

    name: str
    help: str
    type: int
    labels: tuple[str, ...] = ()


FAMILIES: Final[list[Family]] = []
"""All that are declared, in the order of this file."""


def _counter(name: str, text: str, *labels: str) -> Family:
    FAMILIES.append(Family(name, text, cri.COUNTER, labels))
    return FAMILIES[-1]


def _gauge(name: str, text: str, *labels: str) -> Family:
    FAMILIES.append(Family(name, text, cri.GAUGE, labels))
    return FAMILIES[-1]


CPU_USAGE = _counter("container_cpu_usage_seconds_total", "CPU time used.", "cpu")
CPU_USER = _counter("container_cpu_user_seconds_total", "CPU time used in user mode.")
CPU_SYSTEM = _counter("container_cpu_system_seconds_total", "CPU time used in the kernel.")
CPU_PERIODS = _counter("container_cpu_cfs_periods_total", "Periods of the CPU quota that have passed.")
CPU_THROTTLED_PERIODS = _counter("container_cpu_cfs_throttled_periods_total", "Periods in which the quota ran out.")
CPU_THROTTLED = _counter("container_cpu_cfs_throttled_seconds_total", "Time spent waiting for the next period.")

MEMORY_USAGE = _gauge("container_memory_usage_bytes", "Memory in use, with all file cache.")
MEMORY_WORKING_SET = _gauge("container_memory_working_set_bytes", "Memory in use without inactive file cache.")
MEMORY_RSS = _gauge("container_memory_rss", "Anonymous memory, in bytes.")
MEMORY_CACHE = _gauge("container_memory_cache", "File cache, in bytes.")
MEMORY_SWAP = _gauge("container_memory_swap", "Swap in use, in bytes.")
MEMORY_MAPPED = _gauge("container_memory_mapped_file", "Mapped files, in bytes.")
MEMORY_ACTIVE_FILE = _gauge("container_memory_total_active_file_bytes", "Active file cache.")
MEMORY_INACTIVE_FILE = _gauge("container_memory_total_inactive_file_bytes", "Inactive file cache.")
MEMORY_KERNEL = _gauge("container_memory_kernel_usage", "Memory that the kernel uses for it, in bytes.")
MEMORY_MAX = _gauge("container_memory_max_usage_bytes", "Highest memory use so far.")
MEMORY_FAILCNT = _counter("container_memory_failcnt", "How often memory use met its limit.")
MEMORY_FAILURES = _counter("container_memory_failures_total", "Page faults.", "failure_type", "scope")

NETWORK_RX_BYTES = _counter("container_network_receive_bytes_total", "Bytes received.", "interface")
NETWORK_RX_PACKETS = _counter("container_network_receive_packets_total", "Packets received.", "interface")
NETWORK_RX_ERRORS = _counter("container_network_receive_errors_total", "Errors while receiving.", "interface")
NETWORK_RX_DROPPED = _counter(
    "container_network_receive_packets_dropped_total", "Packets dropped while receiving.", "interface"
)
NETWORK_TX_BYTES = _counter("container_network_transmit_bytes_total", "Bytes sent.", "interface")
NETWORK_TX_PACKETS = _counter("container_network_transmit_packets_total", "Packets sent.", "interface")
NETWORK_TX_ERRORS = _counter("container_network_transmit_errors_total", "Errors while sending.", "interface")
NETWORK_TX_DROPPED = _counter(
    "container_network_transmit_packets_dropped_total", "Packets dropped while sending.", "interface"
)

FS_USAGE = _gauge("container_fs_usage_bytes", "Bytes that the writable layer takes.", "device")
FS_LIMIT = _gauge("container_fs_limit_bytes", "Size of the file system of the writable layer.", "device")
FS_INODES_TOTAL = _gauge("container_fs_inodes_total", "Inodes of that file system.", "device")
FS_INODES_FREE = _gauge("container_fs_inodes_free", "Free inodes of that file system.", "device")
FS_READS = _counter("container_fs_reads_total", "Reads from a block device.", "device")
FS_READS_BYTES = _counter("container_fs_reads_bytes_total", "Bytes read from a block device.", "device")
FS_WRITES = _counter("container_fs_writes_total", "Writes to a block device.", "device")
FS_WRITES_BYTES = _counter("container_fs_writes_bytes_total", "Bytes written to a block device.", "device")
BLKIO = _counter(
    "container_blkio_device_usage_total", "Bytes by block device and operation.", "device", "major", "minor", "operation"
)

OOM_EVENTS = _counter("container_oom_events_total", "Processes that the OOM killer has ended.")

PROCESSES = _gauge("container_processes", "Processes.")
THREADS = _gauge("container_threads", "Threads.")
THREADS_MAX = _gauge("container_threads_max", "Limit of threads; 0 if there is none.")
FILE_DESCRIPTORS = _gauge("container_file_descriptors", "Open file descriptors.")
SOCKETS = _gauge("container_sockets", "Open sockets.")
ULIMITS = _gauge("container_ulimits_soft", "Soft limits of its first process.", "ulimit")
LAST_SEEN = _gauge("container_last_seen", "When this was read, in seconds since the epoch.")
START_TIME = _gauge("container_start_time_seconds", "When it was started, in seconds since the epoch.")

HUGETLB_USAGE = _gauge("container_hugetlb_usage_bytes", "Bytes in huge pages.", "pagesize")
HUGETLB_MAX = _gauge("container_hugetlb_max_usage_bytes", "Highest use of huge pages so far.", "pagesize")

PRESSURE_CPU_WAITING = _counter("container_pressure_cpu_waiting_seconds_total", "Time in which a task waited for CPU.")
PRESSURE_CPU_STALLED = _counter("container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for CPU.")
PRESSURE_MEMORY_WAITING = _counter(
    "container_pressure_memory_waiting_seconds_total", "Time in which a task waited for memory."
)
PRESSURE_MEMORY_STALLED = _counter(
    "container_pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory."
)
PRESSURE_IO_WAITING = _counter("container_pressure_io_waiting_seconds_total", "Time in which a task waited for I/O.")
PRESSURE_IO_STALLED = _counter("container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for I/O.")

SPEC_CPU_PERIOD = _gauge("container_spec_cpu_period", "Period of the CPU quota, in microseconds.")
SPEC_CPU_QUOTA = _gauge("container_spec_cpu_quota", "CPU quota, in microseconds a period; absent if there is none.")
SPEC_CPU_SHARES = _gauge("container_spec_cpu_shares", "Weight of CPU use, as cgroup v1 counts it.")
SPEC_MEMORY_LIMIT = _gauge("container_spec_memory_limit_bytes", "Limit of memory; 0 if there is none.")
SPEC_MEMORY_RESERVATION = _gauge("container_spec_memory_reservation_limit_bytes", "Memory kept for it; 0 if none is.")
SPEC_MEMORY_SWAP = _gauge("container_spec_memory_swap_limit_bytes", "Limit of memory and swap; 0 if there is none.")


def descriptors() -> list[cri.MetricDescriptor]:
    """What the kubelet reads once."""
    return [
        cri.MetricDescriptor(name=family.name, help=family.help, label_keys=BASE_LABELS + family.labels)
        for family in FAMILIES
    ]


class FileSystem(NamedTuple):
    """Where writable layers lie."""

    device: str
    bytes: int
    inodes: int
    inodes_free: int


class Writer:
    """Appends metrics of one container or pod to a message."""

    def __init__(self, target: Any, base: Sequence[str]) -> None:
        """`target` is a repeated Metric field, `base` the values of BASE_LABELS."""
        self._target = target
        self._base = list(base)

    def put(self, family: Family, value: int | None, *labels: str) -> None:
        """Append one value; None, which the kernel does not say, is left out. Timestamp 0: as of now."""
        if value is None:
            return
        assert len(labels) == len(family.labels), family.name
        self._target.add(
            name=family.name,
            metric_type=family.type,
            label_values=self._base + list(labels),
            value=cri.UInt64Value(value=value),
        )

    def usage(self, usage: Usage, details: Details) -> None:
        """CPU, memory and pressure."""
        if usage.cpu is not None:
            self.put(CPU_USAGE, usage.cpu // SECOND, "total")
            self.put(CPU_USER, details.cpu.user // SECOND)
            self.put(CPU_SYSTEM, details.cpu.system // SECOND)
            self.put(CPU_PERIODS, details.cpu.periods)
            self.put(CPU_THROTTLED_PERIODS, details.cpu.throttled_periods)
            self.put(CPU_THROTTLED, details.cpu.throttled // SECOND)
        self._memory(usage, details)
        for pressure, waiting, stalled in (
            (usage.cpu_pressure, PRESSURE_CPU_WAITING, PRESSURE_CPU_STALLED),
            (usage.memory_pressure, PRESSURE_MEMORY_WAITING, PRESSURE_MEMORY_STALLED),
            (usage.io_pressure, PRESSURE_IO_WAITING, PRESSURE_IO_STALLED),
        ):
            self._pressure(pressure, waiting, stalled)

    def _memory(self, usage: Usage, details: Details) -> None:
        memory = usage.memory
        if memory is None:
            return
        self.put(MEMORY_USAGE, memory.usage)
        self.put(MEMORY_WORKING_SET, memory.working_set)
        self.put(MEMORY_RSS, memory.rss)
        self.put(MEMORY_CACHE, memory.cache)
        self.put(MEMORY_SWAP, memory.swap)
        self.put(MEMORY_MAPPED, memory.mapped_file)
        self.put(MEMORY_ACTIVE_FILE, memory.active_file)
        self.put(MEMORY_INACTIVE_FILE, memory.inactive_file)
        self.put(MEMORY_KERNEL, details.memory_kernel)
        self.put(MEMORY_MAX, details.memory_peak)
        self.put(MEMORY_FAILCNT, details.memory_failures)
        for kind, faults in (("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)):
            self.put(MEMORY_FAILURES, faults, kind, "hierarchy")

    def _pressure(self, pressure: Pressure | None, waiting: Family, stalled: Family) -> None:
        if pressure is not None:
            self.put(waiting, pressure.some.total // USECOND)
            self.put(stalled, pressure.full.total // USECOND)

    def devices(self, details: Details) -> None:
        """Block devices and huge pages."""
        for io in details.io:
            device = device_name(io.major, io.minor)
            self.put(FS_READS, io.reads, device)
            self.put(FS_READS_BYTES, io.read_bytes, device)
            self.put(FS_WRITES, io.writes, device)
            self.put(FS_WRITES_BYTES, io.write_bytes, device)
            for operation, count in (("Read", io.read_bytes), ("Write", io.write_bytes)):
                self.put(BLKIO, count, device, str(io.major), str(io.minor), operation)
        for pages in details.hugepages:
            self.put(HUGETLB_USAGE, pages.usage, pages.size)
            self.put(HUGETLB_MAX, pages.peak, pages.size)

    def layer(self, used: int | None, system: FileSystem) -> None:
        """The writable layer."""
        self.put(FS_USAGE, used, system.device)
        self.put(FS_LIMIT, system.bytes, system.device)
        self.put(FS_INODES_TOTAL, system.inodes, system.device)
        self.put(FS_INODES_FREE, system.inodes_free, system.device)

    def processes(self, count: int, details: Details, files: OpenFiles, open_files_limit: int | None) -> None:
        """Processes and what they hold."""
        self.put(PROCESSES, count)
        if details.threads is not None:
            self.put(THREADS, details.threads)
            self.put(THREADS_MAX, details.limits.threads or 0)
        self.put(FILE_DESCRIPTORS, files.descriptors)
        self.put(SOCKETS, files.sockets)
        self.put(ULIMITS, open_files_limit, "max_open_files")

    def specification(self, limits: Limits) -> None:
        """What was asked for."""
        self.put(SPEC_CPU_PERIOD, limits.cpu_period)
        self.put(SPEC_CPU_QUOTA, limits.cpu_quota)
        self.put(SPEC_CPU_SHARES, limits.cpu_shares)
        self.put(SPEC_MEMORY_LIMIT, limits.memory or 0)
        self.put(SPEC_MEMORY_RESERVATION, limits.memory_reservation or 0)
        self.put(SPEC_MEMORY_SWAP, limits.memory_and_swap or 0)

    def life(self, started_at: int, oom_kills: int) -> None:
        """Times, and what the OOM killer did; `started_at` in nanoseconds since the epoch."""
        self.put(START_TIME, started_at // SECOND)
        self.put(LAST_SEEN, int(time.time()))
        self.put(OOM_EVENTS, oom_kills)

    def interfaces(self, interfaces: Sequence[Interface]) -> None:
        """The pod's network."""
        for interface in interfaces:
            name = interface.name
            self.put(NETWORK_RX_BYTES, interface.rx_bytes, name)
            self.put(NETWORK_RX_PACKETS, interface.rx_packets, name)
            self.put(NETWORK_RX_ERRORS, interface.rx_errors, name)
            self.put(NETWORK_RX_DROPPED, interface.rx_dropped, name)
            self.put(NETWORK_TX_BYTES, interface.tx_bytes, name)
            self.put(NETWORK_TX_PACKETS, interface.tx_packets, name)
            self.put(NETWORK_TX_ERRORS, interface.tx_errors, name)
            self.put(NETWORK_TX_DROPPED, interface.tx_dropped, name)
