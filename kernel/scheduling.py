"""Scheduler and I/O priority of a process (sched(7), ioprio_set(2)), said as the OCI configuration says them.

Both belong to threads. A child inherits them, and a program that is executed keeps them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from kernel import syscalls

POLICIES: Final = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
FLAGS: Final = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES: Final = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_CLASS_SHIFT: Final = 13


def set_io_priority(pid: int, kind: str, priority: int) -> None:
    """Of every thread of a process. OSError if the kernel does not give it."""
    for thread in _threads(pid):
        syscalls.set_io_priority(thread, IO_CLASSES[kind] << _CLASS_SHIFT | priority)


def set_scheduler(pid: int, scheduler: Mapping[str, Any]) -> None:
    """Of every thread of a process, but a deadline of its first alone. Times are nanoseconds. OSError if it is not given."""
    threads = [pid] if scheduler["policy"] == "SCHED_DEADLINE" else _threads(pid)
    for thread in threads:
        attributes = syscalls.SchedAttr(
            policy=POLICIES[scheduler["policy"]],
            flags=sum(FLAGS[flag] for flag in dict.fromkeys(scheduler.get("flags", ()))),
            nice=scheduler.get("nice", 0),
            priority=scheduler.get("priority", 0),
            runtime=scheduler.get("runtime", 0),
            deadline=scheduler.get("deadline", 0),
            period=scheduler.get("period", 0),
        )
        syscalls.sched_setattr(thread, attributes)


def _threads(pid: int) -> list[int]:
    return [int(thread) for thread in os.listdir(f"/proc/{pid}/task")]
