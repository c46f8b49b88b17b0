"""A layer as a directory and as a file: what the kernel says of every object is the same."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.harness import layer_files
from tests.images.image_builder import Member, directory, hardlink, symlink, tar
from tests.images.layer_stack import UnpackFailed, overlay, place_of, run_unpack, unpack_stack

pytestmark = pytest.mark.root

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
NO_ONE = 0xFFFFFFFF
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry) for entry in ((1, 7, NO_ONE), (2, 6, 1000), (4, 5, NO_ONE), (16, 6, NO_ONE), (32, 0, NO_ONE))
)
NAMES = ("a", "b", "c", "d/a", "d/b", "d/e/a", "d/e/b", "f", "g", "n" * 255)
times = st.sampled_from([0, 1, -1, 1_700_000_000, 1_700_000_000.25, 4_000_000_000])
owners = st.sampled_from([(0, 0), (1000, 65535), (65536, 5), (2**31, 2**31)])
modes = st.sampled_from([0, 0o644, 0o755, 0o4755, 0o2711, 0o1777, 0o7777])
attributes = st.sampled_from(
    [
        *({}, {}, {}, {"user.k": b"v"}, {"user.k": b"v" * 900, "trusted.t": b""}, {"security.capability": CAPABILITY}),
        *({"system.posix_acl_access": ACL}, {"nonsense.k": b"v", "user.l": b"w"}),
    ]
)


@st.composite
def members(draw: st.DrawFn) -> Member:
    name = draw(st.sampled_from(NAMES))
    uid, gid = draw(owners)
    common: dict[str, Any] = {"mode": draw(modes), "uid": uid, "gid": gid, "mtime": draw(times), "xattrs": draw(attributes)}
    match draw(st.sampled_from(["file", "file", "directory", "link", "symlink", "char", "block", "fifo"])):
        case "file":
            return Member(name, b"content" * draw(st.sampled_from([0, 1, 500, 585, 586, 5000])), **common)
        case "directory":
            return directory(draw(st.sampled_from(["d/", "d/e/", "./", "f/"])), common.pop("mode"), **common)
        case "link":
            return hardlink(name, draw(st.sampled_from(NAMES)))
        case "symlink":
            link = symlink(name, draw(st.sampled_from(["a", "/d", "x" * 200, "nowhere"])))
            link.uid, link.gid, link.mtime = uid, gid, common["mtime"]
            return link
        case "fifo":
            return Member(name, type=tarfile.FIFOTYPE, **common)
        case kind:
            which = tarfile.CHRTYPE if kind == "char" else tarfile.BLKTYPE
            return Member(
                name, type=which, device=draw(st.sampled_from([(1, 3), (259, 70_000), (4095, 1_048_575)])), **common
            )


def everything(place: Path, *, links: bool) -> dict[bytes, tuple[Any, ...]]:
    """All that lstat, readlink, getxattr and read say, but for numbers and sizes that are a file system's own affair."""
    found: dict[bytes, tuple[Any, ...]] = {}
    top = os.fsencode(place)
    seen: dict[int, bytes] = {}
    for parent, directories, files in os.walk(top):
        for name in sorted([*directories, *files]) + ([b"."] if parent == top else []):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            names = os.listxattr(path, follow_symlinks=False)
            xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in names if n != "security.selinux"}
            is_directory = kind == stat.S_IFDIR
            content = Path(os.fsdecode(path)).read_bytes() if kind == stat.S_IFREG else b""
            target = os.readlink(path) if kind == stat.S_IFLNK else b""
            first = seen.setdefault(status.st_ino, path) if links and not is_directory else path
            found[os.path.relpath(path, top)] = (
                *(status.st_mode, status.st_uid, status.st_gid, status.st_rdev, content, target, xattrs),
                None if is_directory else status.st_mtime_ns,
                status.st_nlink if links and not is_directory else None,
                None if is_directory else status.st_size,
                os.path.relpath(first, top),
            )
    return found


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    layer_files.need(tmp_path)


@settings(max_examples=30, derandomize=True, suppress_health_check=list(HealthCheck))
@example([Member("a", b"x"), hardlink("b", "a"), hardlink("d/a", "b"), Member("a", b"another"), hardlink("c", "a")])
@example([directory("d/", 0o2755, gid=7), Member("d/a", b"1", mode=0o4755, xattrs={"security.capability": CAPABILITY})])
@given(st.lists(members(), max_size=12))
def test_one_layer(given_members: list[Member]) -> None:
    layer = tar([directory("./"), directory("d/"), directory("d/e/"), *given_members])
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        answers = [run_unpack(layer, base / f"layer-{form}.erofs", [], form=form) for form in ("directory", "erofs")]
        kinds = [answer.get("error") for answer in answers]
        assert kinds[0] == kinds[1], answers
        if kinds[0]:
            assert answers[0]["message"] == answers[1]["message"]
            return
        same = ("diff_id", "inflated", "entries", "depends", "attributed", "unsettled", "has_root")
        assert [answers[0]["ok"][key] for key in same] == [answers[1]["ok"][key] for key in same]
        with place_of(base / "layer-erofs.erofs") as place:
            assert everything(place, links=True) == everything(base / "layer-directory.erofs" / "fs", links=True)


@settings(max_examples=15, derandomize=True, suppress_health_check=list(HealthCheck))
@example([[directory("d/", xattrs={"user.k": b"v"}), Member("d/a", b"1" * 9000, uid=7, mtime=5)], [hardlink("b", "d/a")]])
@given(st.lists(st.lists(members(), max_size=5, unique_by=lambda m: m.name), min_size=2, max_size=4))
def test_a_stack(stack: list[list[Member]]) -> None:
    """Objects of lower layers that a layer takes over, and directories that it leaves out, with all that they have."""
    with tempfile.TemporaryDirectory() as name:
        found = []
        for form in ("directory", "erofs"):
            base = Path(name, form)
            base.mkdir()
            try:
                roots = unpack_stack([tar(layer) for layer in stack], base, [form] * len(stack))
            except UnpackFailed as failure:
                found.append(str(failure))
                continue
            with overlay(roots, base / "merged") as merged:
                found.append(everything(merged, links=False))
        assert found[0] == found[1]


@pytest.mark.parametrize("format", ["gnu", "pax-0.0", "pax-0.1", "pax-1.0"])
def test_holes(tmp_path: Path, format: str) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as out:
        for i in range(30):
            out.seek(i * 1_000_000 + i * 100)
            out.write(bytes([i + 1]) * 5000)
        out.truncate(60_000_001)
    options = ["--format=gnu"] if format == "gnu" else ["--format=posix", f"--sparse-version={format[4:]}"]
    command = ["tar", "-C", tmp_path, *options, "--sparse", "-cf", "-", "sparse"]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    target = tmp_path / "layer.erofs"
    answer = run_unpack(archive, target, None, form="erofs")
    assert answer["ok"]["bytes"] < 1 << 20
    assert target.stat().st_blocks * 512 < 1 << 20
    with place_of(target) as place:
        assert (place / "sparse").read_bytes() == source.read_bytes()
