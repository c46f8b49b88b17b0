"""kernel/disk_usage.py"""

from __future__ import annotations

import os
from pathlib import Path

from kernel.disk_usage import Walk


def measure(root: Path) -> tuple[int, int]:
    walk = Walk(str(root))
    while not walk.step(0.0):
        continue
    return walk.bytes, walk.inodes


def test_counts_blocks_and_inodes(tmp_path: Path) -> None:
    root = tmp_path / "upper"
    (root / "a/b").mkdir(parents=True)
    (root / "a/file").write_bytes(b"x" * 10_000)
    os.link(root / "a/file", root / "a/b/same")
    (root / "sparse").touch()
    os.truncate(root / "sparse", 1 << 30)
    every = [root, *root.rglob("*")]
    distinct = {os.lstat(path).st_ino: os.lstat(path).st_blocks * 512 for path in every}
    assert measure(root) == (sum(distinct.values()), len(distinct))


def test_stays_inside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "large").write_bytes(b"x" * 1_000_000)
    root = tmp_path / "upper"
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "up").symlink_to("..")
    used, inodes = measure(root)
    assert inodes == 3
    assert used < 100_000


def test_deeper_than_a_path_may_be_long(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=fd)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    _, inodes = measure(tmp_path)
    assert 20 <= inodes <= 31


def test_nothing_there(tmp_path: Path) -> None:
    assert measure(tmp_path / "gone") == (0, 0)
