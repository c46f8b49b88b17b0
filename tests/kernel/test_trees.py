"""Trees deeper than Python recurses, with paths longer than PATH_MAX, and as wide as you like."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagesvc.tar.header import TarError
from imagesvc.tar.tar_stream import Entry, TarReader
from imagesvc.worker import pack
from kernel import removal, trees
from kernel.disk_usage import Walk

pytestmark = pytest.mark.root

DEPTH = 3000
NAME = b"d" * 60
"""Far beyond both limits: 3000 levels, 183 000 bytes of path."""


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "deep"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir(NAME, dir_fd=fd)
        below = os.open(NAME, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    with open(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as out:
        out.write(bytes(1 << 20))
    os.close(fd)
    yield root
    removal.remove_tree(root)
    assert not root.exists()


def counted(root: Path) -> tuple[int, int]:
    walk = Walk(str(root))
    while not walk.step(1):
        pass
    return walk.bytes, walk.inodes


def test_depth_hides_nothing_from_the_count(deep: Path) -> None:
    size, inodes = counted(deep)
    assert inodes == DEPTH + 2
    assert size >= 1 << 20


def test_deep_trees_are_packed(deep: Path) -> None:
    class Sink:
        def __init__(self) -> None:
            self.reader, self.names = TarReader(), 0

        def write(self, data: bytes) -> None:
            self.reader.receive_data(data)
            while (event := self.reader.next_event()) is not None:
                if isinstance(event, Entry):
                    self.names += 1

    # Names above what a tar may have are refused by this reader; they were packed.
    sink = Sink()
    with pytest.raises(TarError, match="longer than"):
        pack.pack(os.fsencode(deep), sink, frozenset(), None)
    assert sink.names > 60
    names = [name for name, _path, _status in pack._walk(os.fsencode(deep), frozenset())]
    assert len(names) == DEPTH + 1


def test_a_tree_is_removed_while_it_grows_and_holds_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/link").symlink_to(outside)
    (root / "a/b/file").symlink_to(outside / "kept")
    os.mkfifo(root / "fifo")
    removal.remove_tree(root)
    assert not root.exists()
    assert (outside / "kept").exists()
    removal.remove_tree(root)


def test_wide_directories_take_no_memory(tmp_path: Path) -> None:
    root = tmp_path / "wide"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for i in range(8_000):  # whose names alone are more than may be taken
        os.mkdir(f"{i:0200d}", dir_fd=fd)
    os.close(fd)
    tracemalloc.start()
    try:
        assert counted(root)[1] == 8_001
        removal.remove_tree(root)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not root.exists()
    assert peak < 1 << 20


def test_hard_links_count_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1 << 16))
    alone = counted(tmp_path)
    for i in range(5):
        os.link(tmp_path / "a", tmp_path / f"b{i}")
    assert counted(tmp_path) == alone


def test_a_directory_that_is_moved_away_under_the_walk_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    root = os.open(tmp_path / "root", os.O_RDONLY)
    steps = trees.walk(root)
    assert [next(steps)[1], next(steps)[1]] == [b"a", b"b"]
    os.rename(tmp_path / "root/a", tmp_path / "other/a")
    with pytest.raises(trees.Moved):
        list(steps)
    os.close(root)


def test_the_same_directory_packs_to_the_same_layer(tmp_path: Path) -> None:
    for name in ("b/x", "a/y", "b/a/z"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(name)
    digests = []
    for _ in range(2):
        digest = hashlib.sha256()
        sink = type("Sink", (), {"write": staticmethod(digest.update)})()
        pack.pack(os.fsencode(tmp_path / "root"), sink, frozenset({b"a"}), 0)
        digests.append(digest.hexdigest())
    assert digests[0] == digests[1]
