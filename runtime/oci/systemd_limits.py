"""What systemd has to know of a container's limits, so that it does not take them away.

A container's cgroup is a scope, which stays systemd's: `systemctl daemon-reload`, which every package with a unit does when
it is installed, writes what systemd knows of a scope over what the OCI runtime has written. runc tells systemd all limits,
crun before 1.16 the CPU weight alone. So it is told here too: of a new container by annotations, which cost nothing and
which both runtimes pass on (`org.systemd.property.NAME`, with a value as GVariant writes it); of everything that these
cannot carry, and of updates, by `systemctl set-property`.

Only cgroup v2: with v1 systemd has other properties, and crisp's driver there is cgroupfs unless it is told otherwise.
"""

from __future__ import annotations

from typing import Any, Final

PREFIX: Final = "org.systemd.property."
INFINITY: Final = (1 << 64) - 1
"""No limit, as systemd's bus interface has it."""

_UNIFIED: Final = {
    "memory.min": "MemoryMin",
    "memory.low": "MemoryLow",
    "memory.high": "MemoryHigh",
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
    "cpu.weight": "CPUWeight",
}
_POLICIES: Final = {"0": "continue", "1": "kill"}
"""OOMPolicy of a scope, by memory.oom.group: what systemd writes there. Only a new scope can be told."""
_SETS: Final = {"cpus": "AllowedCPUs", "mems": "AllowedMemoryNodes"}
_PERMYRIAD: Final = 10_000
PERIOD: Final = 100_000
"""Of the CPU quota, in microseconds, if none is named."""
IDLE: Final = 0
"""The CPU weight by which systemd knows cpu.idle."""


def new_annotations(resources: dict[str, Any]) -> dict[str, str]:
    """For the configuration of a new container with these OCI `linux.resources`."""
    numbers = _numbers(resources)
    quota, period = _quota(resources)
    if quota > 0:
        numbers |= {"CPUQuotaPerSecUSec": quota * 1_000_000 // period, "CPUQuotaPeriodUSec": period}
    found = {f"{PREFIX}{name}": f"uint64 {value}" for name, value in numbers.items()}
    if policy := _POLICIES.get(resources.get("unified", {}).get("memory.oom.group", "").strip()):
        found[f"{PREFIX}OOMPolicy"] = f"'{policy}'"
    return found


def new_assignments(resources: dict[str, Any]) -> list[str]:
    """Assignments for `systemctl set-property` of what annotations cannot carry: lists of processors and memory nodes."""
    cpu, unified = resources.get("cpu", {}), resources.get("unified", {})
    values = {name: cpu.get(key) or unified.get(f"cpuset.{key}", "") for key, name in _SETS.items()}
    return [f"{name}={value.strip()}" for name, value in values.items() if value.strip()] + _devices(unified)


def assignments(resources: dict[str, Any]) -> list[str]:
    """Assignments for `systemctl set-property` after an update."""
    found = [f"{name}={_assigned(name, value)}" for name, value in _numbers(resources).items()]
    quota, period = _quota(resources)
    if quota:
        share = quota * _PERMYRIAD // period
        found += [
            f"CPUQuota={share // 100}.{share % 100:02}%" if quota > 0 else "CPUQuota=",
            f"CPUQuotaPeriodSec={period}us",
        ]
    return found + new_assignments(resources)


def _numbers(resources: dict[str, Any]) -> dict[str, int]:
    memory = resources.get("memory", {})
    limit, both = memory.get("limit", 0), memory.get("swap", 0)
    numbers = {}
    if limit:
        numbers["MemoryMax"] = limit if limit > 0 else INFINITY
    if both:
        # OCI's is memory and swap together, cgroup v2's and systemd's swap alone.
        numbers["MemorySwapMax"] = both - limit if both > 0 and limit > 0 else INFINITY
    if reservation := memory.get("reservation", 0):
        numbers["MemoryLow"] = reservation if reservation > 0 else INFINITY
    if (tasks := resources.get("pids", {}).get("limit")) is not None:
        numbers["TasksMax"] = tasks if tasks > 0 else INFINITY
    for key, value in resources.get("unified", {}).items():
        if key in _UNIFIED and (value == "max" or value.isdigit()):
            numbers[_UNIFIED[key]] = INFINITY if value == "max" else int(value)
    return numbers | _weights(resources)


def _weights(resources: dict[str, Any]) -> dict[str, int]:
    unified = resources.get("unified", {})
    found = {}
    if unified.get("cpu.idle", "").strip() == "1":
        found["CPUWeight"] = IDLE
    if weight := resources.get("blockIO", {}).get("weight", 0):
        found["IOWeight"] = 1 + (weight - 10) * 9999 // 990  # as the OCI runtimes have it
    for line in unified.get("io.weight", "").splitlines():
        value = line.removeprefix("default").strip()
        if value.isdigit():
            found["IOWeight"] = int(value)
    return found


def _devices(unified: dict[str, str]) -> list[str]:
    """Weights of single devices (`8:0 100`)."""
    words = [line.split() for line in unified.get("io.weight", "").splitlines()]
    return [f"IODeviceWeight=/dev/block/{pair[0]} {pair[1]}" for pair in words if len(pair) == 2 and ":" in pair[0]]


def _quota(resources: dict[str, Any]) -> tuple[int, int]:
    """Quota and period in microseconds; 0: not said, below: none."""
    cpu = resources.get("cpu", {})
    if quota := cpu.get("quota", 0):
        return quota, cpu.get("period") or PERIOD
    words = resources.get("unified", {}).get("cpu.max", "").split()
    if not words or not all(word.isdigit() for word in words[1:]):
        return 0, PERIOD
    return int(words[0]) if words[0].isdigit() else -1, int(words[1]) if len(words) > 1 else PERIOD


def _assigned(name: str, value: int) -> str:
    """As `systemctl set-property` reads it."""
    if name == "CPUWeight" and value == IDLE:
        return "idle"
    return "infinity" if value == INFINITY else str(value)
