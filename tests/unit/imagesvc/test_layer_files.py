"""A layer as one file: what stands behind the image, the tar that it gives back, and that damage is noticed."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from imagesvc.erofs import layer_file
from imagesvc.erofs.layer_file import LayerFileError
from tests.images.image_builder import Member, directory, hardlink, tar
from tests.images.layer_stack import run_job, run_unpack

pytestmark = pytest.mark.root

MEMBERS = [
    directory("d/"),
    Member("d/empty"),
    Member("d/small", b"s" * 100),
    Member("d/large", os.urandom(9000)),
    hardlink("d/link", "d/large"),
    Member(".wh.gone", b"content of what is no file"),
    Member("d/small", b"another"),
]


def unpack(layer: bytes, target: Path) -> dict[str, Any]:
    answer = run_unpack(layer, target, None, form="erofs")
    assert answer["ok"]["diff_id"] == "sha256:" + hashlib.sha256(layer).hexdigest()
    ok: dict[str, Any] = answer["ok"]
    return ok


def test_the_tar_comes_back_even_of_files_that_were_replaced(tmp_path: Path) -> None:
    target = tmp_path / "layer.erofs"
    answer = unpack(tar(MEMBERS), target)
    assert answer["skeleton"]
    assert answer["skeleton_bytes"] > 0
    rebuilt = run_job({"job": "rebuild", "layer": str(target), "output": ""})
    assert rebuilt == {"ok": {"diff_id": answer["diff_id"]}}
    blob = run_job({"job": "rebuild", "layer": str(target), "output": str(tmp_path / "blob")})
    assert blob["ok"]["diff_id"] == answer["diff_id"]
    member = {"name": "layer.tar", "layer": str(target), "size": answer["inflated"]}
    archive = tmp_path / "archive"
    assert run_job({"job": "export", "output": str(archive), "members": [member]}) == {"ok": {}}
    with tarfile.open(archive) as stream:
        content = stream.extractfile("layer.tar")
        assert content is not None
        assert content.read() == tar(MEMBERS)


def test_a_file_is_all_that_a_layer_leaves(tmp_path: Path) -> None:
    target = tmp_path / "place" / "layer.erofs"
    target.parent.mkdir()
    file = tmp_path / "blob"
    file.write_bytes(tar(MEMBERS))
    unpack(tar(MEMBERS), target)
    assert sorted(os.listdir(target.parent)) == ["layer.blob", "layer.erofs"]
    assert target.stat().st_mode & 0o777 == 0o600


def test_what_stands_behind_the_image(tmp_path: Path) -> None:
    target = tmp_path / "layer.erofs"
    answer = unpack(tar(MEMBERS), target)
    first = layer_file.read(str(target))
    assert first.document == b""
    assert first.whiteouts == b"gone"
    assert first.image_bytes % 4096 == 0
    assert first.skeleton_bytes == answer["skeleton_bytes"]
    layer_file.seal(str(target), b"{}" * 1000, keep_skeleton=True)
    layer_file.seal(str(target), b"{}", keep_skeleton=True)
    assert layer_file.read(str(target)) == first._replace(document=b"{}")
    assert run_job({"job": "rebuild", "layer": str(target), "output": ""})["ok"]["diff_id"] == answer["diff_id"]
    layer_file.seal(str(target), b"{}", keep_skeleton=False)
    assert layer_file.read(str(target)) == first._replace(document=b"{}", skeleton_bytes=0)
    assert run_job({"job": "check", "layer": str(target)}) == {"ok": {"metadata": True, "diff_id": ""}}


def test_damage_is_noticed(tmp_path: Path) -> None:
    target = tmp_path / "layer.erofs"
    answer = unpack(tar(MEMBERS), target)
    trailer = layer_file.read(str(target))
    good = target.read_bytes()
    content = good.index(MEMBERS[3].data[:4096])

    def check(offset: int, value: bytes) -> dict[str, Any]:
        target.write_bytes(good[:offset] + value + good[offset + len(value) :])
        return run_job({"job": "check", "layer": str(target)})

    assert check(0, b"") == {"ok": {"metadata": True, "diff_id": answer["diff_id"]}}
    assert check(content, b"other")["ok"]["metadata"]
    assert check(content, b"other")["ok"]["diff_id"] != answer["diff_id"]
    for address, length in trailer.metadata:
        assert not check(address + length - 1, bytes([good[address + length - 1] ^ 1]))["ok"]["metadata"]
    for behind in (4, 8, 12, 40):  # from the end: the header has a name, which nobody reads
        damaged = check(trailer.skeleton_offset + trailer.skeleton_bytes - behind, b"\xff\xff\xff")
        assert damaged.get("error") == "bad" or damaged["ok"]["diff_id"] != answer["diff_id"]
    assert check(len(good) - 60, b"x")["error"] == "bad"


@pytest.mark.parametrize("length", [0, 1, 127, 128, 4096, -1, -128])
def test_a_file_that_was_cut_off_is_no_layer(tmp_path: Path, length: int) -> None:
    target = tmp_path / "layer.erofs"
    unpack(tar(MEMBERS), target)
    target.write_bytes(target.read_bytes()[:length])
    with pytest.raises(LayerFileError):
        layer_file.read(str(target))
