"""What a container's processes would inherit from the daemon (by way of fork server, shim, OCI runtime), and what they get.

attribute                             they get                                       where
oom_score_adj                         the container's, also its execs: else they     `take_oom_score`, in the child
                                      would be as unkillable as the shim             that executes the runtime
nice, I/O priority, scheduler,        the kernel's own values                        `shed`, in the fork server
timer slack, umask, signal mask
ignored signals                       none                                           the fork server and `process.spawn`
environment, descriptors              the runtime: PATH, 0 to 2. The rest is said    `process.spawn`
                                      by the OCI configuration
cgroup                                the container's                                the runtime, and `tracking`
namespaces                            the configuration's, else the host's           the runtime
user, groups, capabilities, seccomp   the configuration's                            the runtime
resource limits                       the configuration's; what it does not name     the daemon's unit, for a container
                                      is as the daemon's service has it              and its execs alike
CPU affinity, NUMA policy             the daemon's service's: a machine's isolated   the daemon's unit
                                      processors must stay so; and the cpuset's
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kernel import cgroups, syscalls

TIMER_SLACK = 50_000  # ns; the kernel's own
UMASK = 0o022


def shed() -> None:
    """Be an ordinary process. What needs a privilege that is not there (a better priority than ours) stays as it is."""
    os.umask(UMASK)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    changes: tuple[Callable[[], Any], ...] = (
        lambda: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)),
        lambda: os.setpriority(os.PRIO_PROCESS, 0, 0),
        syscalls.reset_io_priority,
        lambda: syscalls.prctl(syscalls.PR_SET_TIMERSLACK, TIMER_SLACK),
    )
    for change in changes:
        with suppress(OSError):
            change()


def oom_score(process: dict[str, Any]) -> int:
    """Of an OCI process object; 0 if it names none."""
    return int(process.get("oomScoreAdj") or 0)


def take_oom_score(score: int, pid: int | str = "self") -> None:
    """Have a process take it: ourselves, or a child. Without CAP_SYS_RESOURCE it can't be lowered, and stays as it is."""
    try:
        cgroups.write(f"/proc/{pid}/oom_score_adj", str(score))
    except (PermissionError, ProcessLookupError, FileNotFoundError):
        return
