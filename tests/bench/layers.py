"""Layers as files and as directories beside containerd: pull, first pod, reads, removal, inodes; one table.

    .venv/bin/python -m tests.bench.layers [--image usual|large|tiny] [--rounds 3] [--dir /var/tmp/...]
                                           [--containerd PATH] [--only NAME]...

usual: 1 GB in 12 layers and 60 000 files; large: one layer of 4 GB; tiny: 500 000 files of up to 200 bytes. All through CRI,
from Debian's docker-registry on loopback, onto an ext4 of its own in each round, on a loop device that does not use the page
cache of the file below it. `--containerd` is a program of version 2; its shim is looked for beside it. Reads go through
the container's root (/proc/PID/root), so that no program's start is in them; "cold" is after dropping the page cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kernel import cgroups, syscalls
from kernel.cgroup_stats import read_usage
from proto import api_pb2 as cri
from tests.bench import pull
from tests.bench.runtimes import Crisp, Runtime, containerd_of, isolate
from tests.harness.client import Client
from tests.images.image_builder import Layout, Member, busybox, directory, tar
from tests.images.registry_server import Registry

MIB = 1 << 20
BLOCK = 4096
RANDOM_READS = 20_000
SMALL_FILES = 4_000
SETTLE_SECONDS = 120.0
LARGE = 256 * MIB
COLUMNS = {
    "answer": "pull, s",
    "pull": "until on disk, s",
    "cpu": "of it processors, s",
    "pod": "first pod, s",
    "sequential": "sequential, cold, MB/s",
    "again": "again, MB/s",
    "cached": "memory per byte read",
    "scattered": "random 4 KiB, cold, 1/s",
    "small": "small files, cold, 1/s",
    "removal": "removal, s",
    "inodes": "inodes",
}


class Files(Crisp):
    """This checkout, layers as files or as directories."""

    def __init__(self, place: Path, form: str) -> None:
        super().__init__(place)
        with open(self._config, "a") as file:
            file.write(f'[images]\nlayers = "{form}"\n[metrics]\ncadvisor_socket = ""\n[nri]\nenabled = false\n')


def build(layout: Layout, image: str) -> None:
    """The image, with a program at its bottom."""
    rng = random.Random(1)
    config = {"Entrypoint": ["/bin/sleep", "1000000"]}
    words = [rng.randbytes(rng.choice((3, 9, 15))) for _ in range(pull.WORDS)]
    pool = pull.text(rng, words, 32 * MIB)
    if image == "usual":
        pull.build(layout, 1024, 12, 60_000, [busybox()], config)
        return
    members = [directory("./"), directory("srv0/")]
    if image == "large":
        content = pool * (LARGE // len(pool))
        members += [Member(f"srv0/large{number}", content) for number in range(4096 * MIB // LARGE)]
    else:
        for number in range(500_000):
            if number % 1000 == 0:
                members.append(directory(f"srv0/d{number // 1000}/"))
            start, size = rng.randrange(MIB), rng.randrange(200)
            members.append(Member(f"srv0/d{number // 1000}/file{number}", pool[start : start + size]))
    layout.image("bench", [busybox(), tar(members)], config)


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def cached() -> int:
    """Bytes in the page cache."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Cached:"))


def read_all(paths: list[Path]) -> int:
    total = 0
    buffer = bytearray(MIB)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while length := file.readinto(buffer):
                total += length
    return total


def rate(amount: float, begin: float) -> float:
    return amount / (time.monotonic() - begin)


def reads(root: Path) -> dict[str, float]:
    """What a container gets of its image."""
    found: dict[str, float] = {}
    tops = sorted(root.glob("srv*"))
    large = [path for top in tops for path in sorted(top.glob("large*"))][:40]
    folders = sorted(tops[0].glob("d*"))
    small = [*itertools.islice((path for folder in folders for path in sorted(folder.iterdir())), SMALL_FILES)]
    if large:
        drop_caches()
        before, begin = cached(), time.monotonic()
        total = read_all(large)
        found["sequential"] = rate(total / 1e6, begin)
        found["cached"] = (cached() - before) / total
        begin = time.monotonic()
        read_all(large)
        found["again"] = rate(total / 1e6, begin)
        drop_caches()
        rng = random.Random(2)
        places = [(path, rng.randrange(path.stat().st_size // BLOCK)) for path in rng.choices(large, k=RANDOM_READS)]
        files = {path: os.open(path, os.O_RDONLY) for path in large}
        begin = time.monotonic()
        for path, block in places:
            os.pread(files[path], BLOCK, block * BLOCK)
        found["scattered"] = rate(RANDOM_READS, begin)
        for descriptor in files.values():
            os.close(descriptor)
    if small:
        drop_caches()
        begin = time.monotonic()
        read_all(small)
        found["small"] = rate(len(small), begin)
    return found


def first_pod(client: Client, reference: str, logs: Path) -> tuple[str, Path, float]:
    """The pod's id, its container's root, and the seconds until it ran."""
    config = cri.PodSandboxConfig(log_directory=str(logs))
    config.metadata.name = config.metadata.uid = config.metadata.namespace = "bench"
    config.linux.security_context.namespace_options.network = cri.NODE
    wanted = cri.ContainerConfig(image={"image": reference}, metadata={"name": "bench"}, log_path="log")
    begin = time.monotonic()
    pod = client.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config)).pod_sandbox_id
    request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=wanted, sandbox_config=config)
    container = client.runtime.CreateContainer(request).container_id
    client.runtime.StartContainer(cri.StartContainerRequest(container_id=container))
    seconds = time.monotonic() - begin
    status = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container, verbose=True))
    return pod, Path(f"/proc/{json.loads(status.info['info'])['pid']}/root"), seconds


def measure(runtime: Runtime, reference: str, disk: Path) -> dict[str, float]:
    """One round."""
    client = runtime.start()
    assert runtime.process is not None
    group = cgroups.detect().group(f"crisp-bench-{os.getpid()}-pull")
    group.create()
    try:
        group.enter(runtime.process.pid)
        spec = cri.ImageSpec(image=reference)
        settle(disk)
        free = os.statvfs(disk).f_ffree
        before, begin = cpu_seconds(group), time.monotonic()
        client.images.PullImage(cri.PullImageRequest(image=spec), timeout=1200)
        found = {"answer": time.monotonic() - begin}
        settle(disk)
        found |= {"pull": time.monotonic() - begin, "inodes": float(free - os.statvfs(disk).f_ffree)}
        found["cpu"] = cpu_seconds(group) - before
        logs = disk / "logs"
        logs.mkdir()
        pod, root, found["pod"] = first_pod(client, reference, logs)
        found |= reads(root)
        client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod))
        client.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod))
        left = os.statvfs(disk).f_ffree + found["inodes"] * 0.9
        begin = time.monotonic()
        client.images.RemoveImage(cri.RemoveImageRequest(image=spec), timeout=600)
        while os.statvfs(disk).f_ffree < left and time.monotonic() - begin < SETTLE_SECONDS:
            time.sleep(0.005)
        found["removal"] = time.monotonic() - begin
        return found
    finally:
        client.__exit__(None, None, None)
        runtime.stop()
        while not (group.kill() and group.remove()):
            time.sleep(0.01)


def settle(disk: Path) -> None:
    """Has everything of this disk written, and nothing of others'."""
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        syscalls.syncfs(descriptor)
    finally:
        os.close(descriptor)


def cpu_seconds(group: cgroups.Group) -> float:
    """What the runtime's processes have used of all processors; it says more than the clock on a machine that is busy."""
    return (read_usage(group).cpu or 0) / 1e9


def runtimes(only: list[str], containerd: str, reference: str) -> Iterator[tuple[str, Any]]:
    """By name: what makes it in a directory."""
    made = {
        "containerd": lambda place: containerd_of(place, reference, containerd),
        "crisp, directories": lambda place: Files(place, "directories"),
        "crisp, files": lambda place: Files(place, "erofs"),
    }
    return ((name, made[name]) for name in only or made)


@contextmanager
def plain(target: Path) -> Iterator[None]:
    """A directory where temporary files are."""
    target.mkdir()
    yield
    shutil.rmtree(target, ignore_errors=True)


@contextmanager
def new_disk(target: Path, image: Path, megabytes: int) -> Iterator[None]:
    """An empty ext4 in a sparse file that is read and written past the page cache."""
    target.mkdir()
    with image.open("wb") as out:
        out.truncate(megabytes * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-i", "8192", image], check=True)
    command = ["losetup", "--find", "--show", "--direct-io=on", image]
    device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["mount", device, target], check=True)
    settle(target)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", target], check=True)
        subprocess.run(["losetup", "--detach", device], check=True)
        image.unlink()
        target.rmdir()


def rounds(options: argparse.Namespace, reference: str, base: Path) -> dict[str, list[dict[str, float]]]:
    results: dict[str, list[dict[str, float]]] = {}
    for number in range(options.rounds):
        for name, make in runtimes(options.only, options.containerd, reference):
            disk = base / f"disk{number}"
            with plain(disk) if options.here else new_disk(disk, base / "image.ext4", 24 * 1024):
                results.setdefault(name, []).append(measure(make(disk / "runtime"), reference, disk))
            print(name, {k: round(v, 3) for k, v in results[name][-1].items()}, file=sys.stderr, flush=True)
    return results


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Medians."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, runs in results.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        lines.append(f"| {name} | " + " | ".join(shown(middle.get(key)) for key in COLUMNS) + " |")
    return "\n".join(lines)


def shown(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", choices=["usual", "large", "tiny"], default="usual")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=None, help="keep the image here for further runs")
    parser.add_argument("--here", action="store_true", help="no loop device: for reads; pulls meet what was deleted before")
    parser.add_argument("--containerd", default="", help="a containerd of version 2; else Debian's is taken")
    parser.add_argument("--only", action="append", help="containerd; crisp, directories; crisp, files")
    options = parser.parse_args()
    isolate()
    base = Path(tempfile.mkdtemp(prefix="crisp-bench-", dir="/var/tmp"))
    place = (options.dir or base) / options.image
    new = not place.exists()
    registry = Registry(place / "registry")
    try:
        reference = f"{registry.host}/bench/image:v1"
        if new:
            layout = Layout(place / "layout")
            build(layout, options.image)
            layout.push("bench", reference)
            shutil.rmtree(place / "layout")
        print(table(rounds(options, reference, base)))
    finally:
        registry.close()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
