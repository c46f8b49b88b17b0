"""What this host has to give, measured once at start. Requests that go beyond it are cut down to it, and the pod runs."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel import capabilities, cgroups, lsm, project_quota
from kernel.cgroups import Hierarchies, Mode


@dataclass(frozen=True, slots=True)
class Host:
    """Facts about kernel and privileges."""

    capabilities: frozenset[str]
    """crisp's own bounding set: nothing can be given that is not in it."""
    known_capabilities: frozenset[str]
    hierarchies: Hierarchies
    """Where control groups are mounted; on a hybrid host the v1 controllers are used."""
    systemd_cgroups: bool
    has_swap_accounting: bool
    has_seccomp: bool
    has_apparmor: bool
    has_selinux: bool
    has_mqueue: bool
    has_project_quota: bool
    """Whether the file system of the writable layers counts by project."""
    lowest_oom_score_adj: int
    nofile_limit: int

    @property
    def cgroup_v2(self) -> bool:
        """Whether cgroup v2 alone has the controllers."""
        return self.hierarchies.mode is Mode.V2

    @property
    def has_hugetlb(self) -> bool:
        """Whether hugepage limits can be set."""
        return "hugetlb" in self.hierarchies.controllers

    def describe(self) -> dict[str, Any]:
        """As JSON for `crictl info`."""
        return {
            "cgroups": self.hierarchies.mode.value,
            "controllers": sorted(self.hierarchies.controllers),
            "systemdCgroups": self.systemd_cgroups,
            "withheldCapabilities": sorted(self.known_capabilities - self.capabilities),
            "seccomp": self.has_seccomp,
            "apparmor": self.has_apparmor,
            "selinux": self.has_selinux,
            "swapAccounting": self.has_swap_accounting,
            "projectQuota": self.has_project_quota,
        }


def measure(cgroup_driver: str, root: Path) -> Host:
    """Look at the host. `cgroup_driver` is the configuration's: auto, systemd or cgroupfs; `root` holds the layers."""
    bounding = capabilities.bounding_set()
    hierarchies = cgroups.detect()
    return Host(
        capabilities=bounding,
        known_capabilities=frozenset(capabilities.NAMES),
        hierarchies=hierarchies,
        systemd_cgroups=uses_systemd_cgroups(cgroup_driver, hierarchies),
        has_swap_accounting=_has_swap_accounting(hierarchies),
        has_seccomp=os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
        has_apparmor=lsm.apparmor_enabled(),
        has_selinux=lsm.selinux_enabled(),
        has_mqueue=os.path.exists("/proc/sys/fs/mqueue"),
        has_project_quota=project_quota.available(str(root)),
        lowest_oom_score_adj=-1000 if "CAP_SYS_RESOURCE" in bounding else _own_oom_score_adj(),
        nofile_limit=_nofile_limit("CAP_SYS_RESOURCE" in bounding),
    )


def uses_systemd_cgroups(cgroup_driver: str, hierarchies: Hierarchies) -> bool:
    """Whether systemd makes the containers' cgroups."""
    if cgroup_driver == "auto":
        return hierarchies.mode is Mode.V2 and Path("/run/systemd/system").is_dir()
    return cgroup_driver == "systemd"


def _has_swap_accounting(hierarchies: Hierarchies) -> bool:
    if hierarchies.mode is Mode.V2:
        return "memory" in hierarchies.controllers and os.path.exists("/proc/swaps")
    memory = hierarchies.controllers.get("memory")
    return memory is not None and os.path.exists(os.path.join(memory, "memory.memsw.limit_in_bytes"))


def _own_oom_score_adj() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


def _nofile_limit(may_raise: bool) -> int:
    if may_raise:
        return int(Path("/proc/sys/fs/nr_open").read_text())
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]
