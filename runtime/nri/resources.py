"""The resources part of adjustments and updates: each field is one plugin's, and zero is not the same as not said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from proto import nri_pb2 as nri

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.nri.owners import Owners

MEMORY: Final = {
    "limit": nri.MemLimit,
    "reservation": nri.MemReservation,
    "swap": nri.MemSwapLimit,
    "kernel": nri.MemKernelLimit,
    "kernel_tcp": nri.MemTCPLimit,
    "swappiness": nri.MemSwappiness,
    "disable_oom_killer": nri.MemDisableOomKiller,
    "use_hierarchy": nri.MemUseHierarchy,
}

CPU: Final = {
    "shares": nri.CPUShares,
    "quota": nri.CPUQuota,
    "period": nri.CPUPeriod,
    "realtime_runtime": nri.CPURealtimeRuntime,
    "realtime_period": nri.CPURealtimePeriod,
    "cpus": nri.CPUSetCPUs,
    "mems": nri.CPUSetMems,
}

WHOLE: Final = {"blockio_class": nri.BlockioClass, "rdt_class": nri.RdtClass, "pids": nri.PidsLimit}


class Merger:
    """Lays what one plugin asks of one container's resources over what others have asked for."""

    def __init__(self, owners: Owners, container: str, plugin: str) -> None:
        self._owners, self._container, self._plugin = owners, container, plugin

    def adjust(self, asked: nri.LinuxResources, *targets: nri.LinuxResources) -> None:
        """Of a new container. Raises `Conflict`."""
        self.update(asked, *targets)
        for target in targets if asked.devices else ():
            target.devices.extend(asked.devices)

    def update(self, asked: nri.LinuxResources, *targets: nri.LinuxResources) -> None:
        """Of a container that is there: all but device rules, which nobody can change any more. Raises `Conflict`."""
        self._fields(MEMORY, asked.memory, [target.memory for target in targets])
        self._fields(CPU, asked.cpu, [target.cpu for target in targets])
        self._fields(WHOLE, asked, targets)
        for page in asked.hugepage_limits:
            self._claim(nri.HugepageLimits, page.page_size)
            for target in targets:
                others = [nri.HugepageLimit(page_size=p.page_size, limit=p.limit) for p in target.hugepage_limits]
                del target.hugepage_limits[:]
                target.hugepage_limits.extend(other for other in others if other.page_size != page.page_size)
                target.hugepage_limits.append(page)
        for key, value in sorted(asked.unified.items()):
            self._claim(nri.CgroupsUnified, key)
            for target in targets:
                target.unified[key] = value

    def _claim(self, field: nri.Field, key: str | None = None) -> None:
        self._owners.claim(self._container, field, self._plugin, key)

    def _fields(self, fields: Mapping[str, nri.Field], asked: Any, targets: Any) -> None:
        for name, field in fields.items():
            value = getattr(asked, name)
            if isinstance(value, str):
                if value:
                    self._claim(field)
                    for target in targets:
                        setattr(target, name, value)
            elif asked.HasField(name):
                self._claim(field)
                for target in targets:
                    getattr(target, name).CopyFrom(value)
