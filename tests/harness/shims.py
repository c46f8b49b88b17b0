"""Finding shims, to end or stop them."""

from __future__ import annotations

import os
from pathlib import Path

from tests.harness.daemon import Daemon


def shim_pid(daemon: Daemon, container_id: str) -> int:
    """The shim of a container; there must be one."""
    found = find_shim(daemon, container_id)
    assert found is not None, f"container {container_id} has no shim"
    return found


def find_shim(daemon: Daemon, container_id: str) -> int | None:
    """The shim of a container: the one that has something of its bundle open."""
    bundle = str(daemon.state / "containers" / container_id)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "comm").read_text() != "crisp-shim\n":
                continue
            if any(os.readlink(fd).startswith(bundle) for fd in (entry / "fd").iterdir()):
                return int(entry.name)
        except OSError:
            continue
    return None


def pids_called(name: str) -> list[int]:
    """All processes of this name."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "comm").read_text() == f"{name}\n":
                found.append(int(entry.name))
        except OSError:
            continue
    return found
