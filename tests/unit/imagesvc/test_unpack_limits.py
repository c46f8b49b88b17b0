"""Entries that no file system takes: each is refused by name, as the image's fault."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.images.image_builder import Member, directory, tar
from tests.images.layer_stack import run_job, run_unpack, unpack_stack

pytestmark = pytest.mark.root

ENTRIES = {
    "owner": Member("name", uid=1 << 40),
    "negative owner": Member("name", uid=-5),
    "group": Member("name", gid=(1 << 32) - 1),
    "device": Member("name", type=tarfile.CHRTYPE, device=((1 << 20), 1)),
    "attribute": Member("name", xattrs={"user.large": b"x" * 60_000}),
    "no such attribute": Member("name", xattrs={"nonsense": b"x"}),
    "capability": Member("name", xattrs={"security.capability": b"x"}),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_what_cannot_be_made_is_refused_by_name(tmp_path: Path, case: str) -> None:
    layer = tar(
        [directory("d/"), ENTRIES[case]], format=tarfile.GNU_FORMAT if not ENTRIES[case].xattrs else tarfile.PAX_FORMAT
    )
    answer = run_unpack(layer, tmp_path / "layer", None)
    if case == "no such attribute" and "ok" in answer:
        return  # as containerd: what the kernel does not know is left out
    assert answer["error"] == "bad"
    assert "name" in answer["message"]


def test_times_beyond_the_kernels_are_brought_into_range(tmp_path: Path) -> None:
    answer = run_unpack(tar([Member("name", mtime=10**18), Member("early", mtime=-(10**17))]), tmp_path / "layer", None)
    assert "ok" in answer


def test_deep_whiteouts(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 1800)
    roots = unpack_stack([tar([Member(f"{deep}/file", b"x")]), tar([Member(f"{deep}/.wh.file")])], tmp_path)
    assert len(roots) == 2
    for root in roots:
        assert run_job({"job": "remove", "paths": [str(root)]}) == {"ok": {}}
