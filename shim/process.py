"""Running another program from the shim: fork, join a tracking cgroup, exec.

The subprocess module is not used for its weight, posix_spawn not because it cannot put the child into a cgroup before
the child's first instruction, which is what makes a tree of processes killable as a whole.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from kernel.sealed import Sealed

# What the OCI runtime finds its tools by. Nothing else of the daemon's environment reaches it.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
EXEC_FAILED = 127


def spawn(
    argv: list[str],
    stdio: tuple[int, int, int],
    procs_fd: int = -1,
    prepare: Callable[[], None] | None = None,
    sealed: Sealed | None = None,
) -> int:
    """Start `argv` with `stdio` as its descriptors 0 to 2 and nothing else inherited; the child's pid.

    `procs_fd` is the opened cgroup.procs of a cgroup2 directory that the child joins first, -1 for none; `prepare` is called
    in the child after that. `sealed` is a copy of the program, executed instead of it where that may be. A child that cannot
    exec, or whose `prepare` raises, ends with 127.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        if procs_fd >= 0:
            os.write(procs_fd, b"0")
        signal.set_wakeup_fd(-1)
        # Python ignores these two, and what is ignored stays so across exec, down to the container's init.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        if prepare is not None:
            prepare()
        high = [os.dup(fd) if fd < 3 else fd for fd in stdio]
        for target, fd in enumerate(high):
            os.dup2(fd, target)
        if sealed is not None and sealed.is_of(argv[0]):
            with suppress(OSError):  # somebody forbids to execute what is in memory: a security module, a sysctl
                os.execve(sealed.fd, argv, ENVIRONMENT)
        os.execve(argv[0], argv, ENVIRONMENT)
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(EXEC_FAILED)


def exit_code(status: int) -> tuple[int, int]:
    """(exit code, signal) of a wait status; a death by signal n has the code 128 + n."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return 128 + number, number
    return os.WEXITSTATUS(status), 0
