"""Telling systemd of limits of a container whose cgroup is its scope; runtime/oci/systemd_limits.py says why."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from runtime.host import systemd

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from runtime.host.host import Host


async def tell(host: Host, blocking: Executor, cgroup: str, assignments: list[str]) -> None:
    """Say it. A failure is logged: the kernel has the limits, and keeps them until somebody reloads systemd."""
    if assignments and host.systemd_cgroups and host.cgroup_v2:
        scope = os.path.basename(cgroup)
        await asyncio.get_running_loop().run_in_executor(blocking, systemd.tell_limits, scope, assignments)
