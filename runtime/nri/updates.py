"""Resources that plugins ask for, as CRI has them and as the OCI runtime takes what CRI has no fields for."""

from __future__ import annotations

from typing import Any, Final

from proto import api_pb2 as cri
from proto import nri_pb2 as nri

_MEMORY: Final = {
    "reservation": "reservation",
    "kernel": "kernel",
    "kernel_tcp": "kernelTCP",
    "swappiness": "swappiness",
    "disable_oom_killer": "disableOOMKiller",
}
_CPU: Final = {"realtime_runtime": "realtimeRuntime", "realtime_period": "realtimePeriod"}


def to_cri(
    resources: nri.LinuxResources, base: cri.LinuxContainerResources | None = None
) -> tuple[cri.LinuxContainerResources, dict[str, Any]]:
    """`base` with what is asked for laid over it, and the part of the OCI `resources` object that CRI cannot say."""
    asked = cri.LinuxContainerResources()
    if base is not None:
        asked.CopyFrom(base)
    memory, cpu = resources.memory, resources.cpu
    pairs = (
        (memory, "limit", "memory_limit_in_bytes"),
        (memory, "swap", "memory_swap_limit_in_bytes"),
        (cpu, "quota", "cpu_quota"),
        (cpu, "period", "cpu_period"),
        (cpu, "shares", "cpu_shares"),
    )
    for part, name, field in pairs:
        if part.HasField(name):
            setattr(asked, field, getattr(part, name).value)
    asked.cpuset_cpus = cpu.cpus or asked.cpuset_cpus
    asked.cpuset_mems = cpu.mems or asked.cpuset_mems
    sizes = {page.page_size for page in resources.hugepage_limits}
    kept = [page for page in asked.hugepage_limits if page.page_size not in sizes]
    del asked.hugepage_limits[:]
    asked.hugepage_limits.extend(kept)
    asked.hugepage_limits.extend(
        cri.HugepageLimit(page_size=page.page_size, limit=page.limit) for page in resources.hugepage_limits
    )
    asked.unified.update(resources.unified)
    return asked, _beyond(resources)


def _beyond(resources: nri.LinuxResources) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "memory": {
            key: getattr(resources.memory, name).value for name, key in _MEMORY.items() if resources.memory.HasField(name)
        },
        "cpu": {key: getattr(resources.cpu, name).value for name, key in _CPU.items() if resources.cpu.HasField(name)},
        "pids": {"limit": resources.pids.limit} if resources.HasField("pids") else {},
    }
    return {key: value for key, value in parts.items() if value}
