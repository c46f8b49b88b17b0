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
}
_SETS: Final = {"cpus": "AllowedCPUs", "mems": "AllowedMemoryNodes"}
_PERMYRIAD: Final = 10_000


def new_annotations(resources: dict[str, Any]) -> dict[str, str]:
    """For the configuration of a new container with these OCI `linux.resources`."""
    numbers = _numbers(resources)
    cpu = resources.get("cpu", {})
    if cpu.get("quota", 0) > 0:
        period = cpu.get("period") or 100_000
        numbers |= {"CPUQuotaPerSecUSec": cpu["quota"] * 1_000_000 // period, "CPUQuotaPeriodUSec": period}
    return {f"{PREFIX}{name}": f"uint64 {value}" for name, value in numbers.items()}


def new_assignments(resources: dict[str, Any]) -> list[str]:
    """Assignments for `systemctl set-property` of what annotations cannot carry: lists of processors and memory nodes."""
    cpu = resources.get("cpu", {})
    return [f"{name}={cpu[key]}" for key, name in _SETS.items() if cpu.get(key)]


def assignments(resources: dict[str, Any]) -> list[str]:
    """Assignments for `systemctl set-property` after an update."""
    found = [f"{name}={'infinity' if value == INFINITY else value}" for name, value in _numbers(resources).items()]
    cpu = resources.get("cpu", {})
    if quota := cpu.get("quota", 0):
        period = cpu.get("period") or 100_000
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
    for key, value in resources.get("unified", {}).items():
        if key in _UNIFIED and (value == "max" or value.isdigit()):
            numbers[_UNIFIED[key]] = INFINITY if value == "max" else int(value)
    return numbers
