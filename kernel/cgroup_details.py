"""What else a control group has to say, for the metrics: CPU by kind, throttling, block I/O, huge pages, limits.

Read with `cgroup_stats`, whose conventions hold: None is what the kernel does not say.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

from kernel.cgroup_stats import flat, number, read
from kernel.cgroups import Group, Mode

_HUGEPAGES = "/sys/kernel/mm/hugepages"


class Cpu(NamedTuple):
    """Nanoseconds, and counts of periods of the CFS quota."""

    user: int
    system: int
    periods: int
    throttled_periods: int
    throttled: int


class DeviceIo(NamedTuple):
    """Traffic with one block device."""

    major: int
    minor: int
    read_bytes: int
    write_bytes: int
    reads: int
    writes: int


class HugePages(NamedTuple):
    """Bytes in huge pages of one size ("2MB"); `peak` where the kernel keeps it (v1)."""

    size: str
    usage: int
    peak: int | None


class Limits(NamedTuple):
    """What was set. None: no limit, or no such controller."""

    cpu_shares: int | None
    """v1's measure, also on v2."""
    cpu_period: int | None
    """Microseconds."""
    cpu_quota: int | None
    """Microseconds in a period."""
    memory: int | None
    memory_reservation: int | None
    memory_and_swap: int | None
    threads: int | None


class Details(NamedTuple):
    """One look at a group."""

    cpu: Cpu
    memory_kernel: int | None
    memory_peak: int | None
    memory_failures: int
    """How often an allocation met the limit."""
    io: list[DeviceIo]
    hugepages: list[HugePages]
    threads: int | None
    limits: Limits


def read_details(group: Group) -> Details:
    """Read the group."""
    return _details_v2(group) if group.hierarchies.mode is Mode.V2 else _details_v1(group)


# --- v2 --------------------------------------------------------------------------------------------------------


def _details_v2(group: Group) -> Details:
    base = group.directory() + "/"
    cpu = flat(read(base + "cpu.stat"))
    return Details(
        cpu=Cpu(
            user=cpu.get(b"user_usec", 0) * 1000,
            system=cpu.get(b"system_usec", 0) * 1000,
            periods=cpu.get(b"nr_periods", 0),
            throttled_periods=cpu.get(b"nr_throttled", 0),
            throttled=cpu.get(b"throttled_usec", 0) * 1000,
        ),
        memory_kernel=flat(read(base + "memory.stat")).get(b"kernel"),
        memory_peak=number(read(base + "memory.peak")),
        memory_failures=flat(read(base + "memory.events")).get(b"max", 0),
        io=parse_io_stat(read(base + "io.stat")),
        hugepages=_hugepages(base, "current", "no.such"),
        threads=number(read(base + "pids.current")),
        limits=_limits_v2(base),
    )


def _limits_v2(base: str) -> Limits:
    quota, _, period = read(base + "cpu.max").strip().partition(b" ")
    weight = number(read(base + "cpu.weight"))
    memory, swap = number(read(base + "memory.max")), number(read(base + "memory.swap.max"))
    return Limits(
        # The inverse of the OCI runtimes' mapping of shares 2..262144 to weights 1..10000.
        cpu_shares=None if weight is None else 2 + (weight - 1) * 262142 // 9999,
        cpu_period=number(period),
        cpu_quota=number(quota),
        memory=memory,
        memory_reservation=number(read(base + "memory.low")) or None,
        memory_and_swap=None if memory is None or swap is None else memory + swap,
        threads=number(read(base + "pids.max")),
    )


def parse_io_stat(text: bytes) -> list[DeviceIo]:
    """v2 io.stat: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`."""
    found = []
    for line in text.splitlines():
        device, *pairs = line.split()
        fields = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
        major, _, minor = device.partition(b":")
        if fields and minor.isdigit():
            counts = (int(fields.get(key, 0)) for key in (b"rbytes", b"wbytes", b"rios", b"wios"))
            found.append(DeviceIo(int(major), int(minor), *counts))
    return found


# --- v1 and hybrid ---------------------------------------------------------------------------------------------


def _details_v1(group: Group) -> Details:
    accounting, cpu_base = group.directory("cpuacct") + "/", group.directory("cpu") + "/"
    memory, blkio, pids = (group.directory(name) + "/" for name in ("memory", "blkio", "pids"))
    cpu = flat(read(cpu_base + "cpu.stat"))
    controllers = group.hierarchies.controllers
    return Details(
        cpu=Cpu(
            user=number(read(accounting + "cpuacct.usage_user")) or 0,
            system=number(read(accounting + "cpuacct.usage_sys")) or 0,
            periods=cpu.get(b"nr_periods", 0),
            throttled_periods=cpu.get(b"nr_throttled", 0),
            throttled=cpu.get(b"throttled_time", 0),
        ),
        memory_kernel=number(read(memory + "memory.kmem.usage_in_bytes")),
        memory_peak=number(read(memory + "memory.max_usage_in_bytes")),
        memory_failures=number(read(memory + "memory.failcnt")) or 0,
        io=parse_blkio(
            read(blkio + "blkio.throttle.io_service_bytes_recursive"), read(blkio + "blkio.throttle.io_serviced_recursive")
        ),
        hugepages=_hugepages(group.directory("hugetlb") + "/", "usage_in_bytes", "max_usage_in_bytes")
        if "hugetlb" in controllers
        else [],
        threads=number(read(pids + "pids.current")),
        limits=Limits(
            cpu_shares=number(read(cpu_base + "cpu.shares")),
            cpu_period=number(read(cpu_base + "cpu.cfs_period_us")),
            cpu_quota=number(read(cpu_base + "cpu.cfs_quota_us")),  # -1, which is no number here: no quota
            memory=number(read(memory + "memory.limit_in_bytes")),
            memory_reservation=number(read(memory + "memory.soft_limit_in_bytes")),
            memory_and_swap=number(read(memory + "memory.memsw.limit_in_bytes")),
            threads=number(read(pids + "pids.max")),
        ),
    )


def parse_blkio(in_bytes: bytes, in_operations: bytes) -> list[DeviceIo]:
    """v1 blkio.throttle.io_service_bytes and io_serviced: `8:0 Read 4096` a line, and a total without device."""
    counts: dict[bytes, dict[tuple[str, bytes], int]] = {}
    for kind, text in (("bytes", in_bytes), ("operations", in_operations)):
        for line in text.splitlines():
            words = line.split()
            if len(words) == 3:
                counts.setdefault(words[0], {})[kind, words[1]] = int(words[2])
    found = []
    for device, by_kind in counts.items():
        major, _, minor = device.partition(b":")
        keys = (("bytes", b"Read"), ("bytes", b"Write"), ("operations", b"Read"), ("operations", b"Write"))
        found.append(DeviceIo(int(major), int(minor), *(by_kind.get(key, 0) for key in keys)))
    return found


# --- both ------------------------------------------------------------------------------------------------------


def _hugepages(base: str, usage_name: str, peak_name: str) -> list[HugePages]:
    found = []
    for size in _page_sizes():
        usage = number(read(f"{base}hugetlb.{size}.{usage_name}"))
        if usage is not None:
            found.append(HugePages(size, usage, number(read(f"{base}hugetlb.{size}.{peak_name}"))))
    return found


@functools.cache
def _page_sizes() -> tuple[str, ...]:
    """As the controller names them: hugepages-2048kB is 2MB."""
    try:
        names = os.listdir(_HUGEPAGES)
    except OSError:
        return ()
    sizes = sorted(int(name.removeprefix("hugepages-").removesuffix("kB")) for name in names)
    return tuple(f"{kb >> 20}GB" if kb >= 1 << 20 else f"{kb >> 10}MB" if kb >= 1 << 10 else f"{kb}KB" for kb in sizes)


@functools.lru_cache(maxsize=256)
def device_name(major: int, minor: int) -> str:
    """The name of a block device, as in /dev/vda; empty if the kernel has none."""
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{major}:{minor}"))
    except OSError:
        return ""
