"""Directory trees are removed without ever crossing a mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel import mounts, removal, trees

pytestmark = pytest.mark.root


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """Somebody's directory, bound below a tree of crisp's, on the same file system."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "precious").write_text("keep")
    place = tmp_path / "tree" / "a" / "place"
    place.mkdir(parents=True)
    mounts.bind(str(theirs), str(place))
    yield theirs
    mounts.detach_all(str(tmp_path))


@pytest.mark.parametrize("removed", ["tree", "tree/a", "tree/a/place"])
def test_what_is_mounted_below_is_left_alone(tmp_path: Path, foreign: Path, removed: str) -> None:
    with pytest.raises(OSError, match="mounted") as caught:
        removal.remove_tree(tmp_path / removed)
    assert caught.value.errno == errno.EBUSY
    assert caught.value.filename == str(tmp_path / "tree" / "a" / "place")
    assert (foreign / "precious").read_text() == "keep"
    mounts.detach(str(tmp_path / "tree" / "a" / "place"))
    removal.remove_tree(tmp_path / removed)
    assert not (tmp_path / removed).exists()
    assert (foreign / "precious").exists()


def test_a_mounted_file_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("source", "tree/file"):
        (tmp_path / name).write_text(name)
    mounts.bind(str(tmp_path / "source"), str(tmp_path / "tree" / "file"))
    try:
        with pytest.raises(OSError, match="busy"):
            removal.remove_tree(tmp_path / "tree")
    finally:
        mounts.detach_all(str(tmp_path))
    assert (tmp_path / "source").read_text() == "source"


def test_links_depth_and_absence(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to("../kept")
    home = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tree)
        for _ in range(3000):  # deeper than any path, and than Python's stack
            os.mkdir("d")
            os.mkdir("e")
            os.chdir("d")
    finally:
        os.fchdir(home)
        os.close(home)
    removal.remove_tree(tree)
    removal.remove_tree(tree)
    removal.remove_tree(tree / "below" / "nothing")
    assert sorted(os.listdir(tmp_path)) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


def test_a_tree_that_is_moved_meanwhile_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is nothing; all the time it is an error that says so."""
    remove, moved = removal._remove, iter([True, False])

    def once(parent: int, base: bytes) -> None:
        if next(moved):
            raise trees.Moved
        remove(parent, base)

    (tmp_path / "tree/below").mkdir(parents=True)
    monkeypatch.setattr(removal, "_remove", once)
    removal.remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    monkeypatch.setattr(removal, "_remove", lambda *_: (_ for _ in ()).throw(trees.Moved))
    with pytest.raises(OSError, match="moved while") as caught:
        removal.remove_tree(tmp_path / "tree")
    assert caught.value.errno == errno.EBUSY
