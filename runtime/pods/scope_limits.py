"""Telling systemd of limits of a container whose cgroup is its scope; runtime/oci/systemd_limits.py says why."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from kernel import cgroups
from runtime.host import systemd

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from runtime.host.host import Host

GROUP_KILL: Final = "memory.oom.group"


async def tell(host: Host, blocking: Executor, cgroup: str, assignments: list[str]) -> None:
    """Say it. A failure is logged: the kernel has the limits, and keeps them until somebody reloads systemd."""
    if assignments and host.systemd_cgroups and host.cgroup_v2:
        scope = os.path.basename(cgroup)
        await asyncio.get_running_loop().run_in_executor(blocking, systemd.tell_limits, scope, assignments)


async def write_again(host: Host, blocking: Executor, cgroup: str, unified: dict[str, str]) -> None:
    """Write what only a new scope can be told of: with each property that systemd is told it writes all that it knows."""
    if host.systemd_cgroups and host.cgroup_v2 and (value := unified.get(GROUP_KILL)):
        path = os.path.join(host.hierarchies.group(cgroup).directory(), GROUP_KILL)
        await asyncio.get_running_loop().run_in_executor(blocking, cgroups.write, path, value)
