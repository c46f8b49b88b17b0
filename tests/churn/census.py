"""What a daemon and its pods hold of the machine, counted from outside: /proc, mounts, links, cgroups, directories."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from kernel import cgroups, mounts
from shim.tracking import FOLDER
from tests.harness.daemon import Daemon

MEMORY = "daemon memory (PSS), KiB"
SLACK = {MEMORY: 16 * 1024, "daemon threads": 8, "daemon descriptors": 8}
"""What may be more than before. Allocators keep what they had at the busiest moment, pools of threads and connections fill
as they are needed; what a pod leaks is more after many of them."""

Census = dict[str, int]


def take(daemon: Daemon, container_ids: set[str]) -> Census:
    """Count; `container_ids` are all that the run has ever made."""
    assert daemon.process is not None
    pid = daemon.process.pid
    hierarchies = cgroups.detect()
    group = hierarchies.group(daemon.cgroup_parent)
    tracked = os.path.join(hierarchies.unified, FOLDER)
    mounted = mounts.below(str(daemon.state), mounts.mountinfo(pid))
    found = {
        "daemon descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "daemon threads": len(os.listdir(f"/proc/{pid}/task")),
        "daemon children": len(descendants(pid)),
        "daemon zombies": sum(is_zombie(child) for child in descendants(pid)),
        "fork server descriptors": sum(len(os.listdir(f"/proc/{server}/fd")) for server in fork_servers(pid)),
        MEMORY: pss_kib(pid),
        "pod and shim processes": len(group.procs()),
        "mounts": len(mounted),
        "pinned namespaces": sum(mount.fstype == b"nsfs" for mount in mounted),
        "cgroups": sum(1 for root in hierarchies.roots() for _ in directories(os.path.join(root, group.path))),
        "tracking cgroups": len(container_ids & set(listed(tracked))),
        "links": len(ip("link", "show")),
        "addresses": sum(len(link["addr_info"]) for link in ip("address", "show")),
        "routes": len(ip("route", "show")) + len(ip("-6", "route", "show")),
        "nftables objects": len(nft()),
    }
    places = {
        "bundles": daemon.state / "containers",
        "sandbox directories": daemon.state / "sandboxes",
        "plugin locks": daemon.state / "cni",
        "writable layers": daemon.root / "containers",
        "image layers": daemon.root / "layers",
        "blobs": daemon.root / "blobs/sha256",
        "partial downloads": daemon.root / "ingest",
        "image records": daemon.root / "images",
    }
    found |= {name: len(listed(directory)) for name, directory in places.items()}
    found["runtime states"] = sum(len(set(listed(path)) - {"probe"}) for path in (daemon.state / "runtimes").iterdir())
    return found


def differences(before: Census, after: Census) -> list[str]:
    """What is not as it was."""
    return [
        name
        for name in before
        if (after[name] - before[name] > SLACK[name] if name in SLACK else after[name] != before[name])
    ]


def table(before: Census, after: Census) -> str:
    """In Markdown, for docs/reliability.md."""
    wrong = differences(before, after)
    lines = ["| | before | after | |", "|---|---:|---:|---|"]
    for name in before:
        more = after[name] - before[name]
        verdict = "**differs**" if name in wrong else f"{more:+}" if more else ""
        lines.append(f"| {name} | {before[name]} | {after[name]} | {verdict} |")
    return "\n".join(lines)


def descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def fork_servers(pid: int) -> list[int]:
    return [child for child in descendants(pid) if b"shim.forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return False


def pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss")


def directories(root: str) -> Iterator[str]:
    for path, _, _ in os.walk(root):
        yield path


def listed(directory: str | Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def ip(*arguments: str) -> list[dict[str, list[object]]]:
    out = subprocess.run(["ip", "-j", *arguments], capture_output=True, check=True, text=True).stdout
    found: list[dict[str, list[object]]] = json.loads(out or "[]")
    return found


def nft() -> list[str]:
    """Chains, sets, rules and elements, a line each."""
    listing = subprocess.run(["nft", "list", "ruleset"], capture_output=True, check=True, text=True).stdout
    return listing.splitlines()
