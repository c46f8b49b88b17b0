"""runtime/build/becoming.py: one tree like another, and what was right already is not touched."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from imagesvc.containerfile.errors import Place
from imagesvc.containerfile.instructions import Instruction
from kernel import mounts, removal, trees
from runtime.build.becoming import Becoming
from runtime.build.copying import Copier

pytestmark = pytest.mark.root


def become(tree: Path, wanted: Path, newest: int | None = None) -> bool:
    opened = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (tree, wanted)]
    try:
        becoming = Becoming(*opened, newest)
        becoming.run()
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return becoming.changed


def described(root: Path) -> dict[str, tuple[object, ...]]:
    """All that can be told of what is in a tree, by path; files of several names by the first of these."""
    found: dict[str, tuple[object, ...]] = {}
    links: dict[int, str] = {}
    for directory, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = Path(directory, name)
            status = path.lstat()
            content: object = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            first = "" if stat.S_ISDIR(status.st_mode) else links.setdefault(status.st_ino, str(path.relative_to(root)))
            attributes = {
                name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
            }
            found[os.path.relpath(path, root)] = (
                *(status.st_mode, status.st_uid, status.st_gid, status.st_rdev, status.st_mtime_ns),
                *(content, first, str(attributes)),
            )
    return found


def grow(root: Path, rng: random.Random) -> None:
    """A tree of everything."""
    root.mkdir(exist_ok=True)
    places, files = [root], []
    for number in range(40):
        path = rng.choice(places) / f"n{rng.randrange(30)}"
        if os.path.lexists(path):
            continue
        kind = rng.randrange(7)
        if kind < 2:
            path.mkdir()
            places.append(path)
        elif kind < 4:
            path.write_bytes(rng.choice((b"", b"short", bytes(600_000) + b"x", rng.randbytes(300_000))))
            files.append(path)
        elif kind == 4:
            path.symlink_to(rng.choice(("/etc", "../..", "nowhere")))
        elif kind == 5 and files:
            path.hardlink_to(rng.choice(files))
        else:
            os.mknod(path, rng.choice((stat.S_IFIFO | 0o600, stat.S_IFCHR | 0o644)), os.makedev(1, 3))
        os.lchown(path, rng.randrange(3), rng.randrange(3))
        if not path.is_symlink():
            path.chmod(rng.choice((0o644, 0o4755, 0o1777)))
            if rng.random() < 0.2:
                os.setxattr(path, "trusted.of-a-test", b"%d" % number)
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(1, rng.randrange(3) * 1_000_000_007), follow_symlinks=False)


@pytest.mark.parametrize("seed", range(12))
def test_any_tree_becomes_any_other(tmp_path: Path, seed: int) -> None:
    tree, wanted = tmp_path / "tree", tmp_path / "wanted"
    grow(tree, random.Random(seed))
    grow(wanted, random.Random(seed + 1000))
    assert become(tree, wanted)
    assert described(tree) == described(wanted)
    assert not become(tree, wanted)


def change_content(root: Path) -> None:
    status = (root / "d/file").stat()
    (root / "d/file").write_bytes(b"other")
    os.utime(root / "d/file", ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_directory(root: Path) -> None:
    (root / "d/file").unlink()
    (root / "d/file").mkdir()


CHANGES: tuple[Callable[[Path], object], ...] = (
    change_content,
    replace_by_directory,
    lambda root: (root / "d/file").chmod(0o600),
    lambda root: (root / "d/file").unlink(),
    lambda root: (root / "d/new").symlink_to("x"),
    lambda root: os.utime(root / "d", ns=(1, 1)),
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_right_is_not_touched(tmp_path: Path, change: Callable[[Path], object]) -> None:
    for root in (tmp_path / "tree", tmp_path / "wanted"):
        (root / "d").mkdir(parents=True)
        (root / "other").mkdir()
        for name in ("d/file", "d/second", "other/file"):
            (root / name).write_bytes(b"small")
        for path in (root / "d/file", root / "d/second", root / "other/file", root / "d", root / "other", root):
            os.utime(path, ns=(5, 5))
    tree, wanted = tmp_path / "tree", tmp_path / "wanted"
    before = {path: path.lstat() for path in (tree / "d/second", tree / "other", tree / "other/file")}
    assert not become(tree, wanted)
    change(wanted)
    assert become(tree, wanted)
    assert described(tree) == described(wanted)
    for path, status in before.items():
        now = path.lstat()
        assert (now.st_ino, now.st_ctime_ns) == (status.st_ino, status.st_ctime_ns)


def test_the_root_itself_is_no_change(tmp_path: Path) -> None:
    """A layer has nothing of it; and what was mounted to be written to is younger than any image."""
    tree, wanted = tmp_path / "tree", tmp_path / "wanted"
    tree.mkdir()
    wanted.mkdir(mode=0o700)
    os.utime(wanted, ns=(1, 1))
    assert not become(tree, wanted)


def test_what_a_layer_cannot_have_is_no_change(tmp_path: Path) -> None:
    """Of a plain directory that has become a layer: times that are too new, and sockets."""
    tree, wanted = tmp_path / "tree", tmp_path / "wanted"
    for root, mtime in ((tree, 9), (wanted, 5)):
        root.mkdir()
        (root / "file").write_bytes(b"")
        os.utime(root / "file", ns=(mtime, mtime))
    os.mknod(tree / "socket", stat.S_IFSOCK | 0o600)
    assert not become(tree, wanted, newest=5)
    assert become(tree, wanted, newest=6)
    assert (tree / "file").stat().st_mtime_ns == 5


def linked(root: Path, *groups: str) -> None:
    """Files, each with the names of a group, that are alike in all else."""
    root.mkdir(exist_ok=True)
    for group in groups:
        first, *others = list(group)
        (root / first).write_bytes(b"same")
        os.utime(root / first, ns=(5, 5))
        for name in others:
            (root / name).hardlink_to(root / first)


LINKED = (
    (("ab",), ("a", "b")),
    (("a", "b"), ("ab",)),
    (("abc",), ("ac", "b")),
    (("ab",), ("abc",)),
    (("bc",), ("abc",)),
    (("ab", "cd"), ("ac", "bd")),
)


@pytest.mark.parametrize(("before", "after"), LINKED)
def test_names_of_one_file(tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """In an overlay too, which gives a file of a lower layer another name by copying it."""
    place = tmp_path / "place"
    place.mkdir()
    mounts.tmpfs(str(place), 1 << 24)
    try:
        lower, upper, work, tree, wanted = (place / name for name in ("lower", "upper", "work", "tree", "wanted"))
        for path in (upper, work, tree):
            path.mkdir()
        linked(lower, *before)
        linked(wanted, *after)
        mounts.overlay(str(tree), [str(lower)], str(upper), str(work))
        try:
            assert become(tree, wanted)
            assert described(tree) == described(wanted)
            assert not become(tree, wanted)
        finally:
            mounts.detach(str(tree))
    finally:
        mounts.detach(str(place))


@pytest.mark.parametrize("after", [("ac",), ("ac", "b")])
def test_of_several_names_one_goes(tmp_path: Path, after: tuple[str, ...]) -> None:
    """Or becomes a file of its own."""
    tree, wanted = tmp_path / "tree", tmp_path / "wanted"
    linked(tree, "abc")
    linked(wanted, *after)
    before = (tree / "a").stat().st_ino
    assert become(tree, wanted)
    assert described(tree) == described(wanted)
    assert (tree / "a").stat().st_ino == before, "what is right stays"


def deep(place: Path, levels: int) -> None:
    directory = os.open(place, os.O_RDONLY)
    for _level in range(levels):
        os.mkdir("d", dir_fd=directory)
        below = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)


def levels_of(place: Path) -> int:
    directory = os.open(place, os.O_RDONLY)
    try:
        return sum(1 for _found in trees.walk(directory))
    finally:
        os.close(directory)


def test_deep_directories(tmp_path: Path) -> None:
    """Deeper than Python's calls and a shell's open files are."""
    tree, wanted = tmp_path / "tree", tmp_path / "wanted"
    tree.mkdir()
    wanted.mkdir()
    try:
        deep(wanted, 700)
        with Copier() as copier:
            assert copier.become(Instruction(at=Place("F", 1), text="FROM x"), str(tree), str(wanted))
        assert levels_of(tree) == 700
    finally:
        for path in (tree, wanted):
            removal.remove_tree(path)
