"""Random stacks of layers, unpacked side by side and mounted, against a model that applies them one upon the other."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from imagesvc.erofs.layer_file import SUFFIX
from tests.harness.layer_files import why_not
from tests.images.image_builder import Member, directory, hardlink, symlink, tar
from tests.images.layer_stack import UnpackFailed, assert_sound, describe, overlay, unpack_stack

pytestmark = pytest.mark.root

SOLID = ("d0", "d1", "d0/sub")
"""Names that are only ever directories, so that whiteouts below them mean the same wherever they stand in a layer."""
NAMES = ("a", "b", "c", "d0/a", "d0/b", "d1/a", "d0/sub/a", "d0/sub/b", "a/x", "a/y", "b/x", "s/a", "s/n/m")
FILE, DIRECTORY, SYMLINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK


class Impossible(Exception):
    """The stack makes no sense, and unpacking has to say so."""


@dataclass
class Node:
    kind: int
    mode: int
    uid: int
    gid: int
    content: Any = None
    mtime: float | None = None
    xattrs: dict[str, bytes] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)


def new_directory() -> Node:
    return Node(DIRECTORY, 0o755, 0, 0)


class Model:
    """One tree, to which layers are applied in order: what OCI's layer.md says, and nothing clever."""

    def __init__(self) -> None:
        self.root = new_directory()

    def apply(self, members: list[Member]) -> None:
        for member in members:
            parent, name = self._parent(member.name) if ".wh." in member.name else (None, "")
            if parent is not None and name == ".wh..wh..opq":
                parent.children.clear()
            elif parent is not None:
                parent.children.pop(name.removeprefix(".wh."), None)
        for member in members:
            if ".wh." not in member.name:
                self._entry(member)

    def _parent(self, name: str) -> tuple[Node, str]:
        parts = name.rstrip("/").split("/")
        return self._walk(parts[:-1]), parts[-1]

    def _walk(self, parts: list[str]) -> Node:
        trail = [self.root]
        todo = parts[::-1]
        followed = 0
        while todo:
            part = todo.pop()
            if part == "..":
                trail = trail[:-1] or [self.root]
                continue
            child = trail[-1].children.setdefault(part, new_directory())
            if child.kind == SYMLINK:
                followed += 1
                if followed > 40:
                    raise Impossible
                if child.content.startswith("/"):
                    trail = [self.root]
                todo += [p for p in child.content.split("/") if p not in ("", ".")][::-1]
            elif child.kind != DIRECTORY:
                raise Impossible
            else:
                trail.append(child)
        return trail[-1]

    def _entry(self, member: Member) -> None:
        parent, name = self._parent(member.name)
        if member.type == tarfile.LNKTYPE:
            target_parent, target = self._parent(member.link)
            node = target_parent.children.get(target)
            old = parent.children.get(name)
            below_itself = old is not None and any(node is n for n in _below(old))
            if node is None or node.kind == DIRECTORY or below_itself:
                raise Impossible
            parent.children[name] = node
            return
        kind = {tarfile.DIRTYPE: DIRECTORY, tarfile.SYMTYPE: SYMLINK}.get(member.type, FILE)
        mode = 0o777 if kind == SYMLINK else member.mode
        content = {DIRECTORY: None, SYMLINK: member.link.encode(), FILE: member.data}[kind]
        node = Node(kind, mode, member.uid, member.gid, content, member.mtime, member.xattrs)
        if kind == SYMLINK:
            node.content = member.link
        old = parent.children.get(name)
        if kind == DIRECTORY and old is not None and old.kind == DIRECTORY:
            node.children = old.children
            node.xattrs = {**old.xattrs, **node.xattrs}
        parent.children[name] = node

    def describe(self) -> dict[bytes, tuple[Any, ...]]:
        found: dict[bytes, tuple[Any, ...]] = {}

        def visit(node: Node, path: str) -> None:
            for name, child in node.children.items():
                full = f"{path}/{name}" if path else name
                content = child.content.encode() if child.kind == SYMLINK else child.content
                mtime = None if child.kind == DIRECTORY else int(child.mtime or 0) * 10**9
                found[full.encode()] = (child.kind, child.mode, child.uid, child.gid, content, mtime, child.xattrs)
                visit(child, full)

        visit(self.root, "")
        return found


def _below(node: Node) -> list[Node]:
    return [n for child in node.children.values() for n in (child, *_below(child))]


forms = st.sampled_from(["directory", "erofs", "erofs"])
"""What each layer is unpacked into: both kinds lie on one another."""
owners = st.sampled_from([(0, 0), (1000, 1000), (0, 42)])
xattrs = st.sampled_from([{}, {}, {}, {"user.k": b"v"}, {"user.k": b"w", "user.l": b""}])


@st.composite
def entries(draw: st.DrawFn) -> Member:
    kind = draw(st.sampled_from(["file", "file", "dir", "solid", "solid", "link", "symlink", "to-d0"]))
    uid, gid = draw(owners)
    mtime = draw(st.integers(1, 2_000_000_000))
    if kind == "solid":
        name = draw(st.sampled_from(SOLID))
        mode = draw(st.sampled_from([0o755, 0o700, 0o1777, 0o2755]))
        return directory(name + "/", mode, uid=uid, gid=gid, mtime=mtime, xattrs=draw(xattrs))
    if kind == "to-d0":
        return symlink("s", draw(st.sampled_from(["d0", "/d1", "d0/sub/../sub", "./d1/"])))
    name = draw(st.sampled_from(NAMES))
    if kind == "dir":
        return directory(name + "/", draw(st.sampled_from([0o755, 0o711])), uid=uid, gid=gid, xattrs=draw(xattrs))
    if kind == "link":
        return hardlink(name, draw(st.sampled_from(NAMES)))
    if kind == "symlink":
        return symlink(name, draw(st.sampled_from(["d0", "/d1/a", "../a", "nowhere", "a"])))
    mode = draw(st.sampled_from([0o644, 0o755, 0o4755, 0o600]))
    data = draw(st.binary(max_size=20))
    return Member(name, data, mode=mode, uid=uid, gid=gid, mtime=mtime, xattrs=draw(xattrs))


@st.composite
def layers(draw: st.DrawFn) -> list[Member]:
    members = draw(st.lists(entries(), max_size=7, unique_by=lambda m: m.name.rstrip("/")))
    used = [m.name.rstrip("/") for m in members] + [m.link for m in members if m.type == tarfile.LNKTYPE]
    for name in draw(st.lists(st.sampled_from(["a", "b", "s", "d0/a", "d1/a", "d0/sub", "d0/b"]), max_size=2)):
        parent, _, base = name.rpartition("/")
        whiteout = Member(f"{parent}/.wh.{base}" if parent else f".wh.{base}")
        # A layer that also has something below the name must say first that the old one is gone, as all tools do.
        touched = any(u == name or u.startswith((name + "/", "s/")) for u in used)
        position = 0 if touched else draw(st.integers(0, len(members)))
        members.insert(position, whiteout)
    for name in draw(st.lists(st.sampled_from(["d0", "d1"]), max_size=1)):
        members.insert(0, Member(f"{name}/.wh..wh..opq"))
    return members


SOAK = int(os.environ.get("CRISP_UNPACKINGS", "0"))
"""How many stacks to try; the same 120 each time, unless it is set."""


@pytest.mark.timeout(0 if SOAK else 600)
@settings(
    max_examples=SOAK or 120,
    derandomize=not SOAK,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@example(
    [[directory("d0/", xattrs={"user.k": b"v"})], [directory("d0/", 0o700)], [directory("d0/", xattrs={"user.l": b""})]],
    ["erofs", "directory", "erofs"],
)
@example([[directory("a/", xattrs={"user.k": b"v"})], [Member(".wh.a"), directory("a/")], [directory("a/")]], ["erofs"] * 3)
@given(st.lists(layers(), min_size=1, max_size=5), st.lists(forms, min_size=5, max_size=5))
def test_parallel_unpack_shows_what_sequential_application_gives(stack: list[list[Member]], kinds: list[str]) -> None:
    model = Model()
    try:
        for members in stack:
            model.apply(members)
    except Impossible:
        model = None  # type: ignore[assignment]
    event("impossible" if model is None else "possible")
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        if why_not(base.parent):
            kinds = ["directory"] * len(kinds)
        try:
            roots = unpack_stack([tar(members) for members in stack], base, kinds[: len(stack)])
        except UnpackFailed:
            assert model is None
            return
        assert model is not None
        for root in roots:
            if root.suffix == SUFFIX:
                assert_sound(root)
        with overlay(roots, base / "merged") as merged:
            assert describe(merged) == model.describe()
