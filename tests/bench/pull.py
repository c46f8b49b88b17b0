"""Pull and unpack beside containerd: one image, one registry on loopback, one table.

    .venv/bin/python -m tests.bench.pull [--megabytes 1024] [--layers 12] [--files 60000] [--rounds 3] [--dir /var/tmp/...]

Both runtimes pull through their own code: crisp through ImageService (a fresh one each round), containerd through its CRI.
Each round has a new ext4 of its own in a loop device: where files were just deleted, ext4 spends half a millisecond on
each new file (it does not reuse an inode within five minutes, and looks at each), whoever pulls. The registry is Debian's
docker-registry; its pages are warm for both. "Until on disk" adds a sync(1) of what containerd leaves in memory: crisp
ends a pull with a sync of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from imagesvc.config import ImageConfig
from imagesvc.registry.endpoint import EndpointSources
from imagesvc.service import ImageService
from imagesvc.store.layers import DIRECTORY, EROFS
from proto import api_pb2 as cri
from tests.bench.runtimes import containerd_of
from tests.harness.layer_files import why_not
from tests.images.image_builder import Layout, Member, directory, tar
from tests.images.memory_records import MemoryRecords
from tests.images.registry_server import Registry

WORDS = 4096
RUNTIMES = ("containerd", "crisp")


def text(rng: random.Random, words: list[bytes], length: int) -> bytes:
    """Bytes that compress about as well as programs and libraries do."""
    return b"".join(rng.choices(words, k=length // 9 + 1))[:length]


def build(
    layout: Layout,
    megabytes: int,
    layers: int,
    files: int,
    below: Sequence[bytes] = (),
    config: dict[str, Any] | None = None,
) -> None:
    """Per layer: many files of half a KiB to 12 KiB, and ten that take the rest. `below` are layers beneath them."""
    rng = random.Random(1)
    words = [rng.randbytes(rng.choice((3, 9, 15))) for _ in range(WORDS)]
    pool = text(rng, words, 32 << 20)
    tars = [*below]
    for number in range(layers):
        members = [directory("./")]
        budget = megabytes * (1 << 20) // layers
        count = files // layers - 10
        for i in range(count):
            if i % 20 == 0:
                members.append(directory(f"srv{number}/d{i // 20}/" if i else f"srv{number}/"))
                if not i:
                    members.append(directory(f"srv{number}/d0/"))
            size = rng.randrange(512, 12 * 1024)
            start = rng.randrange(len(pool) - size)
            budget -= size
            members.append(Member(f"srv{number}/d{i // 20}/file{i}", pool[start : start + size]))
        for i in range(10):
            size = max(budget // 10, 1)
            members.append(Member(f"srv{number}/large{i}", (pool * (size // len(pool) + 1))[:size]))
        tars.append(tar(members))
    layout.image("bench", tars, config)


async def pull_crisp(reference: str, root: Path) -> dict[str, float]:
    service = ImageService(
        ImageConfig(registries=EndpointSources(certs_dirs=(), registries_conf="/nonexistent", registries_conf_dir="/x")),
        root,
        MemoryRecords(),
        DIRECTORY if why_not(root) else EROFS,
    )
    await service.start()
    begin = time.monotonic()
    await service.pull(reference)
    seconds = time.monotonic() - begin
    await service.close()
    return {"seconds": seconds, "synced": seconds}


def pull_containerd(reference: str, directory: Path, program: str) -> dict[str, float]:
    daemon = containerd_of(directory / "containerd", reference, program)
    client = daemon.start()
    try:
        begin = time.monotonic()
        client.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=reference)), timeout=600)
        seconds = time.monotonic() - begin
        os.sync()
        return {"seconds": seconds, "synced": time.monotonic() - begin}
    finally:
        client.__exit__(None, None, None)
        daemon.stop()


def mount_new(target: Path, image: Path, megabytes: int) -> None:
    """An empty ext4 in a sparse file, which is read and written past the page cache: what reaches a disk is not copied."""
    target.mkdir()
    with image.open("wb") as out:
        out.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    command = ["losetup", "--find", "--show", "--direct-io=on", image]
    device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["mount", device, target], check=True)
    subprocess.run(["losetup", "--detach", device], check=True)  # once it is unmounted
    os.sync()


def medians(
    megabytes: int,
    layers: int,
    files: int,
    rounds: int,
    store: Path | None = None,
    only: tuple[str, ...] = RUNTIMES,
    containerd: str = "",
) -> dict[str, dict[str, float]]:
    """Seconds by runtime. `store` keeps the image for further runs."""
    base = Path(tempfile.mkdtemp(prefix="crisp-bench-", dir="/var/tmp"))
    place = store or base / "image"
    new = not place.exists()
    registry = Registry(place / "registry")
    try:
        reference = f"{registry.host}/bench/image:v1"
        if new:
            layout = Layout(place / "layout")
            build(layout, megabytes, layers, files)
            layout.push("bench", reference)
            shutil.rmtree(place / "layout")
        taken = alternate(base, reference, megabytes * 6, rounds, only, containerd)
    finally:
        registry.close()
        shutil.rmtree(base)
    return {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in taken.items()}


def alternate(
    base: Path, reference: str, disk: int, rounds: int, only: tuple[str, ...], containerd: str
) -> dict[str, list[dict[str, float]]]:
    """Pull with each in turn, onto a new disk of `disk` MiB."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in only}
    for number in range(rounds):
        for name in only:
            root = base / f"{name}{number}"
            mount_new(root, base / "disk", disk)
            if name == "crisp":
                results[name].append(asyncio.run(pull_crisp(reference, root)))
            else:
                results[name].append(pull_containerd(reference, root, containerd))
            print(name, {k: round(v, 2) for k, v in results[name][-1].items()}, file=sys.stderr)
            subprocess.run(["umount", root], check=True)
            (base / "disk").unlink()
    return results


def table(medians: dict[str, dict[str, float]]) -> str:
    lines = ["| | pull, s | until on disk, s |", "|---|---|---|"]
    for name, values in medians.items():
        lines.append(f"| {name} | " + " | ".join(f"{values[k]:.2f}" for k in ("seconds", "synced")) + " |")
    if len(medians) == 2:
        ratios = [medians["crisp"][k] / medians["containerd"][k] for k in ("seconds", "synced")]
        lines.append("| ratio | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--files", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=None, help="keep the image here for further runs")
    parser.add_argument(
        "--containerd", default="", metavar="PATH", help="program of version 2, in place of what is installed"
    )
    parser.add_argument("--only", action="append", choices=RUNTIMES)
    options = parser.parse_args()
    only = tuple(options.only or RUNTIMES)
    sizes = (options.megabytes, options.layers, options.files)
    print(table(medians(*sizes, options.rounds, options.dir, only, options.containerd)))


if __name__ == "__main__":
    main()
