"""Taking a checkpoint's files out of an archive; chroot and workers are the API tests' part."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagesvc.limits import Limits
from imagesvc.tar.header import TarError
from imagesvc.tar.inflate import InflateError
from imagesvc.worker import checkpoint_files

GOOD = {"config.dump": b"{}", "spec.dump": b"{}", "checkpoint/inventory.img": b"i", "checkpoint/pages-1.img": b"p" * 9000}


KNOWN = {"config.dump", "spec.dump", "deleted.files", "rootfs-diff.tar"}


def archive(members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.type = kind
            member.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def take(data: bytes, directory: Path, limits: Limits | None = None) -> dict[str, bytes]:
    source = directory.with_suffix(".tar")
    source.write_bytes(data)
    directory.mkdir(exist_ok=True)
    descriptor = os.open(source, os.O_RDONLY)
    before = Path.cwd()
    os.chdir(directory)
    try:
        checkpoint_files._take_from_archive(checkpoint_files._events(descriptor, limits or Limits()))
    finally:
        os.chdir(before)
        os.close(descriptor)
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_is_known_is_taken(tmp_path: Path) -> None:
    others = {"bind.mounts": b"x", "dump.log": b"x", "checkpoint/deeper/file": b"x", "artifacts/a": b"x"}
    assert take(archive(GOOD | others), tmp_path / "d") == GOOD
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "d").rglob("*.img")} == {0o600}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_only_plain_files(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(TarError, match=r"config\.dump is not a plain file"):
        take(archive({"config.dump": b""}, kind), tmp_path / "d")


def test_images_must_be_in_a_directory(tmp_path: Path) -> None:
    with pytest.raises(TarError, match="checkpoint is not a plain file"):
        take(archive({"checkpoint": b"x"}), tmp_path / "d")


@pytest.mark.parametrize("name", ["../config.dump", "checkpoint/../../x", "/checkpoint/../../../x"])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(TarError):
        take(archive({name: b"x"}), tmp_path / "d")


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TarError, match="more than this node's limit of 5000 bytes"):
        take(archive(GOOD), tmp_path / "a", Limits(layer_bytes=5000))
    bomb = gzip.compress(archive({"checkpoint/pages-1.img": bytes(4 << 20)}))
    with pytest.raises(TarError, match="bomb"):
        take(bomb, tmp_path / "b", Limits(inflate_ratio=10, inflate_ratio_floor=1 << 20))
    monkeypatch.setattr(checkpoint_files, "MAX_CHECKPOINT_FILES", 3)
    with pytest.raises(TarError, match="more than 3 files"):
        take(archive(GOOD), tmp_path / "c")


def test_a_sparse_file_of_any_size_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("checkpoint/pages-1.img")
    member.pax_headers = {"GNU.sparse.size": "1000000000000", "GNU.sparse.map": "0,0"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    with pytest.raises(TarError, match="not a plain file"):
        take(out.getvalue(), tmp_path / "d")


@settings(max_examples=200)
@given(position=st.integers(0, len(archive(GOOD)) - 1), byte=st.integers(0, 255), end=st.integers(0, 40000))
def test_damage_is_one_kind_of_error(tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, end: int) -> None:
    data = bytearray(archive(GOOD))
    data[position] = byte
    directory = tmp_path_factory.mktemp("damage") / "d"
    try:
        taken = take(bytes(data[:end]), directory)
    except (TarError, InflateError):
        return
    assert all(name in KNOWN or name.startswith("checkpoint/") for name in taken)
