"""cgroup limits of the OCI configuration (OCI runtime spec, config-linux.md "Control groups").

A host that lacks a controller gets no limit for it: the pod runs, and the log says so once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import structlog

from proto import api_pb2 as cri
from proto.errors import invalid

if TYPE_CHECKING:
    from runtime.host.host import Host

log = structlog.get_logger(__name__)

CONTROL_FILE: Final = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_-]+)+")
"""`memory.high`: a name, not a path."""

_said: set[str] = set()


def withheld(what: str) -> None:
    """Log once that the host cannot do something that a pod asked for."""
    if what not in _said:
        _said.add(what)
        log.warning("this host withholds something; pods run without it", what=what)


RANGES: Final = {
    "cpu_period": (1_000, 1_000_000),
    "cpu_quota": (1_000, 2**44),
    "cpu_shares": (2, 262_144),
}
"""What the kernel takes (sched-bwc.rst; cgroup v1's cpu.shares); 0 asks for nothing, and a quota of -1 for none."""

SET: Final = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*")
"""`0-3,7`: of processors or memory nodes."""


def check(asked: cri.LinuxContainerResources) -> None:
    """INVALID_ARGUMENT for what no kernel takes, with the field's name: OCI runtimes give an errno, or pass it over."""
    for name, (least, most) in RANGES.items():
        value = getattr(asked, name)
        if value and not least <= value <= most and not (name == "cpu_quota" and value == -1):
            raise invalid(f"{name} {value} is not between {least} and {most}")
    for name in ("cpuset_cpus", "cpuset_mems"):
        value = getattr(asked, name)
        if value and not SET.fullmatch(value):
            raise invalid(f"{name} {value!r} is not of the form 0-3,7")
    limit, swap = asked.memory_limit_in_bytes, asked.memory_swap_limit_in_bytes
    for name, value in (("memory_limit_in_bytes", limit), ("memory_swap_limit_in_bytes", swap)):
        if value < -1:
            raise invalid(f"{name} {value} is neither -1 nor a number of bytes")
    if 0 < swap < limit:
        raise invalid(f"memory_swap_limit_in_bytes {swap} counts memory and swap, and is less than {limit} of memory alone")
    if not -1000 <= asked.oom_score_adj <= 1000:
        raise invalid(f"oom_score_adj {asked.oom_score_adj} is not between -1000 and 1000")
    for key in asked.unified:
        if not CONTROL_FILE.fullmatch(key):
            raise invalid(f"unified resource {key!r} is no control file of a cgroup")


def build(asked: cri.LinuxContainerResources, host: Host) -> dict[str, Any]:
    """The `resources` object without devices; INVALID_ARGUMENT for what no kernel takes."""
    check(asked)
    resources: dict[str, Any] = {}
    if cpu := _cpu(asked, host):
        resources["cpu"] = cpu
    if memory := _memory(asked, host):
        resources["memory"] = memory
    if asked.hugepage_limits:
        if host.has_hugetlb:
            resources["hugepageLimits"] = [
                {"pageSize": page.page_size, "limit": page.limit} for page in asked.hugepage_limits
            ]
        else:
            withheld("hugepage limits: no hugetlb controller")
    if asked.unified:
        if host.cgroup_v2:
            resources["unified"] = dict(asked.unified)
        else:
            withheld("unified resources: the host has no pure cgroup v2")
    return resources


def _cpu(asked: cri.LinuxContainerResources, host: Host) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if asked.cpu_shares:
        cpu["shares"] = asked.cpu_shares
    # crun 1.8 cannot write v1's -1 for "no quota". A new group has none, and container_update writes it by itself.
    if asked.cpu_quota > 0 or (asked.cpu_quota and host.cgroup_v2):
        cpu["quota"] = asked.cpu_quota
    if asked.cpu_period:
        cpu["period"] = asked.cpu_period
    if asked.cpuset_cpus:
        cpu["cpus"] = asked.cpuset_cpus
    if asked.cpuset_mems:
        cpu["mems"] = asked.cpuset_mems
    return cpu


def _memory(asked: cri.LinuxContainerResources, host: Host) -> dict[str, Any]:
    """A memory limit without one for swap means no swap, as with containerd and CRI-O, unless `unified` says another."""
    memory: dict[str, Any] = {}
    limit, swap = asked.memory_limit_in_bytes, asked.memory_swap_limit_in_bytes
    if limit:
        memory["limit"] = limit
    if host.has_swap_accounting:
        if swap or (limit and "memory.swap.max" not in asked.unified):
            memory["swap"] = swap or limit
    elif swap and swap != limit:
        withheld("swap limits: the kernel does not account swap")
    return memory
