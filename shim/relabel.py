"""Job: give a volume an SELinux label, where a dead or huge file system cannot hold the daemon up."""

from __future__ import annotations

import os
from typing import Any

from kernel import lsm, trees
from proto.errors import Code, CrispError

REFUSED = frozenset(
    ("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/srv", "/sys",
     "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/var/run")
)  # fmt: skip
"""The host's own: with a container's label on them its services would stop."""


def relabel(args: dict[str, Any], _fds: list[int], _report: Any) -> dict[str, Any]:
    """Label trees; {"changed": number of files}.

    `args`: paths, label. A tree whose root has the label already is left alone: a volume of a million files is walked
    once, not at each start. What is mounted below it keeps its labels. The owner of a volume may change it meanwhile: names
    are looked up in directories that are open, so that no link put in a directory's place leads to a file of the host.
    """
    return {"changed": sum(_relabel(os.path.realpath(path), args["label"]) for path in args["paths"])}


def _relabel(path: str, label: str) -> int:
    if path in REFUSED:
        raise CrispError(Code.INVALID_ARGUMENT, f"SELinux: {path} belongs to the host and is not relabelled")
    try:
        if lsm.file_label(path) == label:
            return 0
        # The root is last, for it is what says that the rest is done.
        return (_relabel_below(path, label) if os.path.isdir(path) else 0) + _set(path, label)
    except trees.Moved:
        raise CrispError(Code.ABORTED, f"SELinux: {path} was changed while it was labelled: try again") from None
    except OSError as error:
        message = f"SELinux: cannot label {error.filename or path} {label}: {error.strerror}"
        raise CrispError(Code.FAILED_PRECONDITION, message) from None


def _relabel_below(path: str, label: str) -> int:
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return sum(_set(f"/proc/self/fd/{fd}/{os.fsdecode(name)}", label) for fd, name, _ in trees.walk(root))
    finally:
        os.close(root)


def _set(path: str, label: str) -> int:
    try:
        if lsm.file_label(path) != label:
            lsm.set_file_label(path, label)
            return 1
    except FileNotFoundError:
        pass  # removed meanwhile
    return 0
