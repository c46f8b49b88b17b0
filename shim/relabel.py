"""Job: give a volume an SELinux label, where a dead or huge file system cannot hold the daemon up."""

from __future__ import annotations

import os
from typing import Any

from kernel import lsm
from proto.errors import Code, CrispError

REFUSED = frozenset(
    ("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/srv", "/sys",
     "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/var/run")
)  # fmt: skip
"""The host's own: with a container's label on them its services would stop."""


def relabel(args: dict[str, Any], _fds: list[int], _report: Any) -> dict[str, Any]:
    """Label trees; {"changed": number of files}.

    `args`: paths, label. A tree whose root has the label already is left alone: a volume of a million files is walked
    once, not at each start.
    """
    return {"changed": sum(_relabel(os.path.realpath(path), args["label"]) for path in args["paths"])}


def _relabel(path: str, label: str) -> int:
    if path in REFUSED:
        raise CrispError(Code.INVALID_ARGUMENT, f"SELinux: {path} belongs to the host and is not relabelled")
    try:
        if lsm.file_label(path) == label:
            return 0
        changed = 0
        for directory, directories, files in os.walk(path, topdown=False):
            for name in (*files, *directories):
                changed += _set(os.path.join(directory, name), label)
        # Last, for it is what says that the rest is done.
        return changed + _set(path, label)
    except OSError as error:
        message = f"SELinux: cannot label {error.filename or path} {label}: {error.strerror}"
        raise CrispError(Code.FAILED_PRECONDITION, message) from None


def _set(path: str, label: str) -> int:
    try:
        if lsm.file_label(path) != label:
            lsm.set_file_label(path, label)
            return 1
    except FileNotFoundError:
        pass  # removed meanwhile
    return 0
