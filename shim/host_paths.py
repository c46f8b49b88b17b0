"""Fork server job that looks at host paths of volumes (see runtime/host_paths.py for why in a process of its own)."""

from __future__ import annotations

import os
from typing import Any

from kernel import mounts
from shim.forkserver import Report


def main(args: dict[str, Any], _fds: list[int], _report: Report) -> dict[str, Any]:
    """`paths` → `sources`: for each path its real path, whether it is a directory, and its mount's propagation.

    A path that is missing is made as a directory with mode 0755.
    """
    return {"sources": [look(path) for path in args["paths"]]}


def look(path: str) -> dict[str, Any]:
    """One path; OSError names it."""
    real = os.path.realpath(path)
    if not os.path.lexists(real):
        os.makedirs(real, mode=0o755, exist_ok=True)
    return {
        "path": real,
        "directory": os.path.isdir(real),
        "propagation": mounts.holding(real).propagation,
    }
