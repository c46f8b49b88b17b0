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


def build(asked: cri.LinuxContainerResources, host: Host) -> dict[str, Any]:
    """The `resources` object without devices."""
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
        for key in asked.unified:
            if not CONTROL_FILE.fullmatch(key):
                raise invalid(f"unified resource {key!r} is no control file of a cgroup")
        if host.cgroup_v2:
            resources["unified"] = dict(asked.unified)
        else:
            withheld("unified resources: the host has no pure cgroup v2")
    return resources


def _cpu(asked: cri.LinuxContainerResources, host: Host) -> dict[str, Any]:
    for name in ("cpu_period", "cpu_shares"):
        if getattr(asked, name) < 0:
            raise invalid(f"{name} must not be negative")
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
