"""What of one daemon is on the host: compared before and after, it tells whether anything was left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kernel import cgroups, mounts


def host_state(directory: Path) -> dict[str, list[str]]:
    """Mounts below `directory`, cgroups of its name, and all of the tests' own network namespace."""
    return {
        "mounts": sorted(os.fsdecode(mount.mount_point) for mount in mounts.below(str(directory))),
        "cgroups": sorted(
            path
            for root in {*cgroups.detect().roots(), cgroups.detect().unified} - {""}
            for path in cgroups.walk(root)
            if directory.name in path
        ),
        "links": sorted(_lines("ip", "-o", "link", "show")),
        "nft": _lines("nft", "list", "ruleset"),
        "processes": _processes(directory),
    }


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def _processes(directory: Path) -> list[str]:
    """Those that have a file of the daemon's open or run in its cgroups."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            groups = Path(f"/proc/{pid}/cgroup").read_text()
            stat = Path(f"/proc/{pid}/stat").read_text()
            targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        zombie = stat.rpartition(")")[2].split()[0] == "Z"
        if not zombie and int(pid) != os.getpid() and any(str(directory) in text for text in (groups, *targets)):
            found.append(f"{pid} {stat.partition('(')[2].rpartition(')')[0]}")
    return found
