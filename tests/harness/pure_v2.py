"""A second run of tests where /sys/fs/cgroup is one cgroup2 mount, as on a production node, on a machine that is not one.

`pytest --cgroup-v2` leaves the machine's mount namespace before anything looks at its control groups; daemons that the tests
start are in the new one with them. Controllers that cgroup v1 holds on the machine stay with v1: there are no limits and no
statistics of them, and a test that needs one asks `missing_controllers`.
"""

from __future__ import annotations

import subprocess

from kernel import capabilities, cgroups, mounts, syscalls
from kernel.cgroups import Mode


def is_machine_pure() -> bool:
    """Whether there is nothing to do: a plain run is one in pure cgroup v2 already."""
    return cgroups.detect().mode is Mode.V2


def enter() -> None:
    """Move this process, which must have one thread, into a mount namespace with pure cgroup v2."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    mounts.make_private("/", recursive=True)
    subprocess.run(["umount", "-R", cgroups.ROOT], check=True)
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", cgroups.ROOT], check=True)
    assert is_machine_pure()


def missing_controllers(*wanted: str) -> list[str]:
    """Those of `wanted` that the mounted hierarchies do not have."""
    return sorted(set(wanted) - set(cgroups.detect().controllers))


def usable_runtime() -> str:
    """crun, or runc where crun may not load the BPF program that device rules are in pure cgroup v2."""
    may = "CAP_SYS_RESOURCE" in capabilities.bounding_set()
    return "crun" if may or cgroups.detect().mode is not Mode.V2 else "runc"
