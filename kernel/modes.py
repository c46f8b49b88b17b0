"""Directories that are root's, with the mode that they must have, whoever made them: a mounted disk comes with its own."""

from __future__ import annotations

import os

from proto.errors import failed_precondition


def own(path: str | os.PathLike[str], mode: int) -> None:
    """Makes the directory if there is none, and sees to it that it is root's and has exactly this mode.

    Raises:
        CrispError: FAILED_PRECONDITION where it is somebody else's, no directory, or its file system knows no modes.
        OSError: it cannot be made or changed.
    """
    os.makedirs(path, mode=mode, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        if before.st_uid != os.geteuid():
            raise failed_precondition(
                f"{path} belongs to another user than the daemon's: chown it, or name another directory"
            )
        if before.st_mode & 0o7777 != mode:  # a disk that has become read-only is told of by who writes to it
            os.fchmod(descriptor, mode)
        found = os.fstat(descriptor).st_mode & 0o7777
    finally:
        os.close(descriptor)
    if found != mode:
        raise failed_precondition(
            f"{path} keeps the mode {found:o} where crisp needs {mode:o}: its file system knows no modes"
        )
