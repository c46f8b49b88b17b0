"""Ending a cgroup: kill what is in it, see that it is empty, remove it. Level-triggered: it looks until it is so."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from kernel.cgroups import Group, Hierarchies
from proto.errors import Code, CrispError
from runtime import limits
from runtime.host import systemd
from runtime.records import ContainerRecord
from shim.tracking import Tracking

LOOK_SECONDS: Final = 0.005


def end_container(hierarchies: Hierarchies, record: ContainerRecord) -> None:
    """As `end`, for all groups of a container whose shim is gone."""
    tracking = Tracking(hierarchies, record.cgroup, record.id)
    _until(lambda: tracking.kill() and tracking.remove(), tracking.group, limits.KILL_SECONDS)


def kill_container(hierarchies: Hierarchies, record: ContainerRecord) -> None:
    """As `end_container`, for one whose shim lives but does not kill it; the groups stay the shim's."""
    tracking = Tracking(hierarchies, record.cgroup, record.id)
    _until(tracking.kill, tracking.group, limits.KILL_AGAIN_SECONDS)


def end(group: Group) -> None:
    """Kill everything in the group and remove it; nothing to do is success. Blocks, so call it in the executor.

    Raises DEADLINE_EXCEEDED naming the processes that do not die: they hang in the kernel.
    """
    _until(lambda: group.kill() and group.remove(), group, limits.KILL_SECONDS)
    if group.path.endswith(".slice"):
        systemd.forget_slice(os.path.basename(group.path))


def _until(ended: Callable[[], bool], group: Group, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ended():
        if time.monotonic() > deadline:
            stuck = ", ".join(describe(pid) for pid in sorted(group.procs()))
            raise CrispError(Code.DEADLINE_EXCEEDED, f"cgroup {group.path} does not end: {stuck or 'it is busy'}")
        time.sleep(LOOK_SECONDS)


def describe(pid: int) -> str:
    """A process that does not die: its name, state, and the kernel function it hangs in."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        with open(f"/proc/{pid}/wchan", encoding="utf-8") as file:
            where = file.read()
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({fields.get('Name')}, state {fields.get('State')}, in {where or 'user space'})"
