"""Who follows a pod to its end, and wants what has ended kept until then: he holds a shared lock on its log directory.

The lock goes with its process. So the daemon knows whether anybody is left, also one that was started anew.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress


def follow(log_directory: str) -> None:
    """Be one, until this process ends. Nothing for a pod that has no such directory, or on a file system without locks."""
    with suppress(OSError):
        fcntl.flock(_open(log_directory), fcntl.LOCK_SH)


def is_followed(log_directory: str) -> bool:
    """Whether there is any. Blocks: the disk can hang."""
    try:
        descriptor = _open(log_directory)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _open(directory: str) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
