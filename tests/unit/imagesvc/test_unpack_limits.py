"""Entries that no file system takes: each is refused by name, as the image's fault."""

from __future__ import annotations

import errno
import os
import tarfile
from pathlib import Path

import pytest

from imagesvc.erofs import layer_file
from imagesvc.limits import Limits
from imagesvc.worker import unpack
from kernel import mounts
from tests.images.image_builder import Member, directory, hardlink, symlink, tar
from tests.images.layer_stack import UnpackFailed, run_job, run_unpack, unpack_stack

pytestmark = pytest.mark.root

ENTRIES = {
    "owner": Member("name", uid=1 << 40),
    "negative owner": Member("name", uid=-5),
    "group": Member("name", gid=(1 << 32) - 1),
    "device": Member("name", type=tarfile.CHRTYPE, device=((1 << 20), 1)),
    "attribute": Member("name", xattrs={"user.large": b"x" * 70_000}),
    "no such attribute": Member("name", xattrs={"nonsense": b"x"}),
    "capability": Member("name", xattrs={"security.capability": b"x"}),
}


forms = pytest.mark.parametrize("form", ["directory", "erofs"])


@forms
@pytest.mark.parametrize("case", ENTRIES)
def test_what_cannot_be_made_is_refused_by_name(tmp_path: Path, case: str, form: str) -> None:
    layer = tar(
        [directory("d/"), ENTRIES[case]], format=tarfile.GNU_FORMAT if not ENTRIES[case].xattrs else tarfile.PAX_FORMAT
    )
    answer = run_unpack(layer, tmp_path / "layer.erofs", None, form=form)
    if case == "no such attribute" and "ok" in answer:
        return  # as containerd: what the kernel does not know is left out
    assert answer["error"] == "bad"
    assert "name" in answer["message"]


def test_an_attribute_for_which_the_file_system_has_no_room(tmp_path: Path) -> None:
    """ext4 has none for this one; a layer's file has."""
    layer = tar([Member("name", xattrs={"user.large": b"x" * 60_000})])
    assert "ok" in run_unpack(layer, tmp_path / "layer.erofs", None, form="erofs")
    answer = run_unpack(layer, tmp_path / "layer", None)
    if "error" in answer:  # xfs takes it
        assert (answer["error"], "no room" in answer["message"]) == ("bad", True)


@forms
@pytest.mark.parametrize("what", ["names", "targets", "attributes"])
def test_what_is_kept_in_memory_has_a_bound(tmp_path: Path, form: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_TREE_BYTES", 50_000)
    members = {
        "names": [Member("n" * 90 + f"/{i}") for i in range(1000)],
        "targets": [symlink(f"{i}", "x" * 4000) for i in range(20)],
        "attributes": [directory(f"{i}", xattrs={"user.a": b"x" * 3000}) for i in range(30)],
    }[what]
    answer = run_unpack(tar(members), tmp_path / "layer.erofs", [], form=form)
    assert (answer["error"], "the names and links of the layer" in answer["message"]) == ("bad", True)


def test_whiteouts_that_are_kept_for_later_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon reads them when it takes the layer in."""
    monkeypatch.setattr(layer_file, "MAX_WHITEOUTS", 10_000)
    layer = tar([directory("d"), *(Member(f"d/.wh.{i:03d}" + "w" * 97) for i in range(100))])
    answer = run_unpack(layer, tmp_path / "many.erofs", None, form="erofs")
    assert (answer["error"], "whiteouts take more than" in answer["message"]) == ("bad", True)


@forms
def test_a_hard_link_to_a_file_of_holes_fills_no_disk(tmp_path: Path, form: str) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    for name in ("a", "b"):
        with (lower / name).open("wb") as file:
            file.truncate(6 << 20)
    layer = tar([hardlink("one", "a"), hardlink("two", "b")])
    answer = run_unpack(layer, tmp_path / "layer.erofs", [lower], Limits(layer_bytes=10 << 20), form)
    assert (answer["error"], "its hard links copy more" in answer["message"]) == ("bad", True)
    assert "ok" in run_unpack(layer, tmp_path / "other.erofs", [lower], Limits(layer_bytes=12 << 20), form)


LONG = {
    "name": Member("n" * 256),
    "link": symlink("name", "x" * 4096),
    "target": hardlink("name", "absent" * 50),
    "path": Member("d/" * 2047 + "name"),
}


@pytest.mark.parametrize("case", LONG)
def test_what_is_too_long_is_refused_alike(tmp_path: Path, case: str) -> None:
    layer = tar([LONG[case]])
    answers = [run_unpack(layer, tmp_path / form, [], form=form) for form in ("directory", "erofs")]
    told = [(answer["error"], answer.get("errno"), answer["message"]) for answer in answers]
    assert told[0] == told[1]


def test_what_is_too_long_is_told_by_its_entry_also_where_it_has_to_wait(tmp_path: Path) -> None:
    layers = [tar([directory("lower")]), tar([Member("lower/file", b"x"), Member("n" * 256, b"x")])]
    for form in ("directory", "erofs"):
        base = tmp_path / form
        base.mkdir()
        with pytest.raises(UnpackFailed, match=r"File name too long \(at the entry b'n+'\)"):
            unpack_stack(layers, base, [form] * 2)


@forms
def test_times_beyond_the_kernels_are_brought_into_range(tmp_path: Path, form: str) -> None:
    layer = tar([Member("name", mtime=10**18), Member("early", mtime=-(10**17))])
    answer = run_unpack(layer, tmp_path / "layer.erofs", None, form=form)
    assert "ok" in answer


@forms
def test_deep_whiteouts(tmp_path: Path, form: str) -> None:
    deep = "/".join(["d"] * 1800)
    stack = [tar([Member(f"{deep}/file", b"x")]), tar([Member(f"{deep}/.wh.file")])]
    roots = unpack_stack(stack, tmp_path, [form] * 2)
    assert len(roots) == 2
    for root in roots:
        assert run_job({"job": "remove", "paths": [str(root)]}) == {"ok": {}}


def test_what_cannot_be_removed_keeps_nothing_else_here(tmp_path: Path) -> None:
    """Nor does what a job has left that was killed: a file or a directory beside its own, for a moment."""
    paths = [tmp_path / name for name in ("new-1.erofs.skeleton", "stuck", "new-2.erofs", "tree", "gone", "last")]
    for path in (paths[0], paths[2], paths[5]):
        path.write_bytes(b"x")
    (tmp_path / "new-2.erofs.skeleton").write_bytes(b"x")
    (tmp_path / "new-2.erofs.root").mkdir()
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "stuck" / "mount").mkdir(parents=True)
    mounts.bind(str(tmp_path / "tree"), str(tmp_path / "stuck" / "mount"))
    try:
        answer = run_job({"job": "remove", "paths": list(map(str, paths))})
        assert (answer["error"], answer["errno"]) == ("os", errno.EBUSY)
        assert os.listdir(tmp_path) == ["stuck"]
    finally:
        mounts.detach(str(tmp_path / "stuck" / "mount"))
