"""What a container's scope was given stays: systemd writes what it knows whenever it is reloaded, or told of anything."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kernel import cgroups
from proto import api_pb2 as cri
from tests.harness.kubelet import Container, Kubelet

pytestmark = pytest.mark.root

MIB = 1 << 20
UNIFIED = {
    "memory.oom.group": "1",
    "memory.min": str(4 * MIB),
    "memory.low": str(8 * MIB),
    "memory.high": str(40 * MIB),
    "memory.swap.max": str(16 * MIB),
    "io.weight": "default 77",
    "cpu.weight": "33",
    "cpu.max": "40000 80000",
    "cpu.max.burst": "1000",
    "pids.max": "77",
    "cpuset.cpus": "0",
    "cgroup.max.depth": "11",
    "cgroup.max.descendants": "13",
    "hugetlb.2MB.max": str(2 * MIB),
}


def group(container: Container) -> Path:
    return next(p for p in Path("/sys/fs/cgroup").rglob(f"*{container.id}.scope"))


def read(container: Container) -> dict[str, str]:
    found = {}
    for path in sorted(group(container).iterdir()):
        limit = path.name.endswith(
            (".max", ".min", ".low", ".high", ".weight", ".group", ".cpus", ".mems", ".burst", ".depth")
        )
        if path.is_file() and (limit or path.name in ("cpu.idle", "io.latency", "cgroup.max.descendants")):
            found[path.name] = path.read_text().strip()
    return found


def given(container: Container) -> dict[str, str]:
    files = read(container)
    return {name: files[name] for name in UNIFIED if name in files}


def reload() -> None:
    subprocess.run(["systemctl", "daemon-reload"], check=True)


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_everything_of_unified_survives(kubelet: Kubelet, handler: str) -> None:
    kubelet.need_handler(handler)
    wanted = cri.ContainerConfig()
    resources = wanted.linux.resources
    resources.memory_limit_in_bytes = 64 * MIB
    resources.unified.update({name: value for name, value in UNIFIED.items() if there(name)})
    container = kubelet.pod(handler=handler).run("/bin/sleep", "1000", config=wanted)
    before = read(container)
    for name in resources.unified:
        assert before[name].split() == UNIFIED[name].split(), name
    reload()
    assert read(container) == before
    container.update(memory_limit_in_bytes=80 * MIB)
    after = read(container)
    assert after == before | {"memory.max": str(80 * MIB)}
    reload()
    assert read(container) == after


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_everything_else_survives_too(kubelet: Kubelet, handler: str) -> None:
    """The named fields, as they were asked for and as an update has changed them."""
    kubelet.need_handler(handler)
    wanted = cri.ContainerConfig()
    resources = wanted.linux.resources
    resources.memory_limit_in_bytes = resources.memory_swap_limit_in_bytes = 64 * MIB
    resources.cpu_shares, resources.cpu_quota, resources.cpu_period, resources.cpuset_cpus = 512, 50_000, 100_000, "0"
    resources.unified["memory.oom.group"] = "1"
    container = kubelet.pod(handler=handler).run("/bin/sleep", "1000", config=wanted)
    before = read(container)
    reload()
    assert read(container) == before
    container.update(cpu_shares=2048, cpu_quota=70_000, memory_limit_in_bytes=96 * MIB)
    after = read(container)
    assert after["cpu.weight"] != before["cpu.weight"]
    assert after["memory.oom.group"] == "1"
    reload()
    assert read(container) == after


def there(name: str) -> bool:
    """Whether this kernel has the controller and the file."""
    controller = name.split(".", maxsplit=1)[0]
    return controller == "cgroup" or controller in cgroups.detect().controllers
