"""What a control group uses now: CPU time, memory, swap, and how long its processes have waited for each (PSI).

This is read for every container each time somebody asks for statistics, so it opens as few files as it can:

    mode      CPU                     memory                                     pressure
    V2        cpu.stat                memory.stat, .current, .max, swap.*        {cpu,memory,io}.pressure
    V1        cpuacct.usage           memory.stat, memory.usage_in_bytes         none: v1 has no such thing
    HYBRID    as V1                   as V1                                      of the container's tracking group

Bytes, nanoseconds and counts are ints. What the kernel does not say (no such controller, the group is gone) is None, never
0. What else there is to know of a group is read by `cgroup_details`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from kernel.cgroups import Group, Mode

# Above this v1 means "no limit": it writes the largest number of pages that it can count.
_NO_LIMIT = 1 << 62
_CHUNK = 4096

REMEMBERED = 512  # looks whose parse is remembered: those at idle groups repeat

_LINE = re.compile(rb"(some|full) avg10=([\d.]+) avg60=([\d.]+) avg300=([\d.]+) total=(\d+)")


class Stall(NamedTuple):
    """Share of time in which processes waited: `total` in microseconds, averages in percent (psi.rst)."""

    total: int
    avg10: float
    avg60: float
    avg300: float


class Pressure(NamedTuple):
    """`some`: at least one process waited; `full`: all did."""

    some: Stall
    full: Stall


class Memory(NamedTuple):
    """Bytes, and counts of page faults. Limits are None where there is none."""

    usage: int
    working_set: int
    """Usage without the file cache that the kernel would drop first; what the kubelet evicts by."""
    rss: int
    cache: int
    mapped_file: int
    active_file: int
    inactive_file: int
    page_faults: int
    major_page_faults: int
    limit: int | None
    swap: int | None
    swap_limit: int | None
    """Of swap alone, also on v1, whose own limit is for memory and swap together."""


class Usage(NamedTuple):
    """One look at a group."""

    cpu: int | None
    """Nanoseconds of CPU time since the group was made."""
    memory: Memory | None
    cpu_pressure: Pressure | None
    memory_pressure: Pressure | None
    io_pressure: Pressure | None


Reader = Callable[[str], bytes]
"""As `read`; `kept_files` has another."""

_NO_STALL = Stall(0, 0.0, 0.0, 0.0)


def read_usage(group: Group, pressure: str = "", reader: Reader | None = None) -> Usage:
    """Read the group. `pressure` is the cgroup2 directory that tracks its processes on a hybrid host."""
    look = reader or read
    if group.hierarchies.mode is Mode.V2:
        directory = group.directory()
        return Usage(_cpu_v2(look, directory), _memory_v2(look, directory), *_pressures(look, directory))
    return Usage(
        number(look(group.directory("cpuacct") + "/cpuacct.usage")),
        _memory_v1(look, group.directory("memory")),
        *_pressures(look, pressure),
    )


@functools.lru_cache(REMEMBERED)
def parse_pressure(text: bytes) -> Pressure | None:
    """A PSI file; None if it is empty. Older kernels have no `full` line for the CPU: nothing was fully stalled then."""
    found = {
        kind: Stall(int(total), float(avg10), float(avg60), float(avg300))
        for kind, avg10, avg60, avg300, total in _LINE.findall(text)
    }
    return Pressure(found.get(b"some", _NO_STALL), found.get(b"full", _NO_STALL)) if found else None


def _pressures(look: Reader, directory: str) -> tuple[Pressure | None, Pressure | None, Pressure | None]:
    if not directory:
        return None, None, None
    return (
        parse_pressure(look(f"{directory}/cpu.pressure")),
        parse_pressure(look(f"{directory}/memory.pressure")),
        parse_pressure(look(f"{directory}/io.pressure")),
    )


def _cpu_v2(look: Reader, directory: str) -> int | None:
    microseconds = flat(look(directory + "/cpu.stat")).get(b"usage_usec")
    return None if microseconds is None else microseconds * 1000


def _memory_v2(look: Reader, directory: str) -> Memory | None:
    current = look(f"{directory}/memory.current")
    if not current:  # the controller is not enabled for this group
        return None
    return _parse_v2(current, *[look(f"{directory}/memory.{name}") for name in ("stat", "max", "swap.current", "swap.max")])


@functools.lru_cache(REMEMBERED)
def _parse_v2(current: bytes, statistics: bytes, most: bytes, swap: bytes, most_swap: bytes) -> Memory | None:
    usage = number(current)
    if usage is None:
        return None
    stat = _words(statistics)
    inactive = int(stat.get(b"inactive_file", 0))
    return Memory(
        usage=usage,
        working_set=max(0, usage - inactive),
        rss=int(stat.get(b"anon", 0)),
        cache=int(stat.get(b"file", 0)),
        mapped_file=int(stat.get(b"file_mapped", 0)),
        active_file=int(stat.get(b"active_file", 0)),
        inactive_file=inactive,
        page_faults=int(stat.get(b"pgfault", 0)),
        major_page_faults=int(stat.get(b"pgmajfault", 0)),
        limit=number(most),
        swap=number(swap),
        swap_limit=number(most_swap),
    )


def _memory_v1(look: Reader, directory: str) -> Memory | None:
    return _parse_v1(look(f"{directory}/memory.usage_in_bytes"), look(f"{directory}/memory.stat"))


@functools.lru_cache(REMEMBERED)
def _parse_v1(current: bytes, statistics: bytes) -> Memory | None:
    usage = number(current)
    stat = _words(statistics)
    if usage is None or not stat:
        return None
    # total_*: with the groups below; hierarchical_*: the lowest limit of the group and those above.
    limit = number(stat.get(b"hierarchical_memory_limit", b""))
    both = number(stat.get(b"hierarchical_memsw_limit", b""))
    inactive = int(stat.get(b"total_inactive_file", 0))
    return Memory(
        usage=usage,
        working_set=max(0, usage - inactive),
        rss=int(stat.get(b"total_rss", 0)),
        cache=int(stat.get(b"total_cache", 0)),
        mapped_file=int(stat.get(b"total_mapped_file", 0)),
        active_file=int(stat.get(b"total_active_file", 0)),
        inactive_file=inactive,
        page_faults=int(stat.get(b"total_pgfault", 0)),
        major_page_faults=int(stat.get(b"total_pgmajfault", 0)),
        limit=limit,
        swap=number(stat.get(b"total_swap", b"")),
        swap_limit=None if both is None or limit is None else max(0, both - limit),
    )


# --- files -----------------------------------------------------------------------------------------------------


def read(path: str) -> bytes:
    """A control file as it is now; empty if the group or the file is not there, or the kernel has it switched off."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = os.read(fd, _CHUNK)
        while len(data) % _CHUNK == 0 and (more := os.read(fd, _CHUNK)):
            data += more
    except OSError:  # ENODEV: the group went while its file was open; EOPNOTSUPP: psi=0
        return b""
    finally:
        os.close(fd)
    return data


def number(text: bytes) -> int | None:
    """A file of one number; None if it is empty, `max`, or what v1 writes for no limit."""
    text = text.strip()
    if not text.isdigit():
        return None
    value = int(text)
    return value if value < _NO_LIMIT else None


def flat(text: bytes) -> dict[bytes, int]:
    """A "flat keyed" file: one `key number` a line."""
    return {key: int(value) for key, value in _words(text).items() if value.isdigit()}


def _words(text: bytes) -> dict[bytes, bytes]:
    """As `flat`, for a file with many more keys than are wanted: the numbers are not converted."""
    words = iter(text.split())
    return dict(zip(words, words, strict=False))
