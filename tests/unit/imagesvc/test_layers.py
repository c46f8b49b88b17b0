"""imagesvc/store/layers.py"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock, call

import pytest

from imagesvc.erofs import layer_file, sample
from imagesvc.store.layers import LayerInfo, LayerStore
from imagesvc.transfer.unpacking import layer_error
from imagesvc.worker import jobs
from imagesvc.worker.pool import JobFailed
from kernel import verity
from proto.errors import Code, CrispError
from shim import layer_probe

DIGEST = f"sha256:{'0' * 64}"
RESULT = {"depends": False, "unsettled": False, "skeleton": False, "bytes": 1, "inodes": 1, "inflated": 1}
CALLS = ("stat", "unlink")


async def nothing() -> None:
    """Nothing is recorded."""


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("number", "code"), [(errno.EIO, Code.INTERNAL), (errno.ENOSPC, Code.RESOURCE_EXHAUSTED)])
def test_a_disk_that_fails_while_a_layer_is_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: Code
) -> None:
    """What the disk says is not a defect of crisp's, and names the directory."""
    with ThreadPoolExecutor(1) as executor:
        (tmp_path / "layers").mkdir()
        store = LayerStore(str(tmp_path), executor, cast("Any", None))
        directory = store.new_directory()
        for name in ("skeleton", "whiteouts"):
            Path(directory, name).write_bytes(b"")

        def fail(path: str, **_: object) -> None:
            raise OSError(number, os.strerror(number), path)

        with monkeypatch.context() as patched, pytest.raises(CrispError) as caught:
            patched.setattr(f"imagesvc.store.layers.os.{call}", fail)
            store.stage(directory, RESULT, DIGEST, DIGEST)
    assert caught.value.code is code
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize(("path", "what"), [("/etc/big", "etc/big of layer"), ("/", "layer"), ("", "layer")])
def test_a_path_inside_a_layer_is_not_told_as_the_hosts(path: str, what: str) -> None:
    failure = JobFailed({"error": "os", "errno": errno.EIO, "message": "Input/output error", "path": path})
    error = layer_error(failure, DIGEST, "/var/lib/crisp/layers")
    assert error.message == f"unpacking {what} {DIGEST}: Input/output error: /var/lib/crisp/layers"


class Disk:
    """A store's directory, its workers replaced by a record of their jobs."""

    def __init__(self, base: Path, executor: ThreadPoolExecutor) -> None:
        self.root = base
        self.layers = base / "layers"
        self.layers.mkdir()
        self.workers = AsyncMock()
        self._executor = executor

    def store(self, form: str = "directory", mounts: str = "") -> LayerStore:
        return LayerStore(str(self.root), self._executor, self.workers, form, mounts)

    def info(self, key: str, **more: Any) -> LayerInfo:
        values: dict[str, Any] = {"bytes": 8192, "inodes": 3, "inflated": 10, "has_root": False, "skeleton": False}
        return LayerInfo(key=key, diff_id=f"sha256:{key}", **(values | more))

    def directory(self, key: str) -> Path:
        path = self.layers / key
        (path / "fs").mkdir(parents=True)
        (path / "layer.json").write_text(json.dumps(asdict(self.info(key))))
        return path

    def file(self, key: str, name: str = "", **more: Any) -> Path:
        path = self.layers / (name or f"{key}.erofs")
        image = sample.image("file", b"text")
        with open(path, "xb") as file:
            file.write(image)
            file.flush()
            info = self.info(key, entries=1, root=(0o755, 7, 8), **more)
            document = json.dumps(asdict(info)).encode()
            trailer = layer_file.Trailer(len(image), 0, [(0, len(image))], b"", document, bytes(32))
            layer_file.write(file.fileno(), trailer)
        return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with ThreadPoolExecutor(1) as executor:
        yield Disk(tmp_path, executor)


@pytest.mark.parametrize("form", ["directory", "erofs"])
def test_layers_of_both_kinds_are_there_whatever_new_ones_are(disk: Disk, form: str) -> None:
    """An upgraded node keeps its directories; one that was set back keeps its files."""
    directory, file = disk.directory("1" * 64), disk.file("2" * 64)
    store = disk.store(form)
    assert store.prepare() == []
    found = {layer.info.key: layer for layer in store.all()}
    assert found["1" * 64].lower == str(directory / "fs")
    assert found["2" * 64].lower == str(file)
    status = os.stat(directory / "fs")
    assert found["1" * 64].root_owner() == (0o755, status.st_uid, status.st_gid)
    assert found["2" * 64].root_owner() == (0o755, 7, 8)
    assert all(layer.info.shows for layer in found.values())
    store.close()


def test_what_the_start_sweeps(disk: Disk) -> None:
    """What is not whole, and of a layer that is there as a directory and as a file one of them."""
    disk.directory("1" * 64)
    disk.file("1" * 64)
    (disk.layers / "new-1.erofs").write_bytes(b"half")
    (disk.layers / "old-2.erofs").write_bytes(b"half")
    (disk.layers / "new-3").mkdir()
    damaged = disk.file("4" * 64)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (disk.layers / ("5" * 64)).mkdir()
    store = disk.store()
    junk = store.prepare()
    assert [layer.info.key for layer in store.all()] == ["1" * 64]
    assert len(junk) == 6
    left = {entry.path for entry in os.scandir(disk.layers)} - {*junk}
    assert left == {layer.path for layer in store.all()}
    assert all(os.path.basename(path).startswith(("new-", "old-")) for path in junk)
    store.close()


async def test_a_file_is_staged_published_and_removed(disk: Disk) -> None:
    store = disk.store("erofs", "/run/mounts")
    store.prepare()
    path = store.new_file()
    assert not os.path.exists(path)
    disk.file("", os.path.basename(path))
    result = RESULT | {"has_root": True, "attributed": False, "entries": 2, "root": [0o750, 1, 2], "skeleton_bytes": 0}
    store.want([DIGEST])
    layer = store.stage(path, result, DIGEST, DIGEST)
    await store.publish([layer], store.mark(), lambda: None, nothing)
    key = "0" * 64
    assert os.listdir(disk.layers) == [f"{key}.erofs"]
    again = disk.store()
    again.prepare()
    [read] = again.all()
    assert read.info == layer.info
    assert read.info.inodes == 1
    assert read.root_owner() == (0o750, 1, 2)
    assert store.remove([key]) == layer.info.bytes
    await store.settle()
    [aside] = os.listdir(disk.layers)
    assert aside.startswith("old-")
    job = {"job": "remove", "paths": [str(disk.layers / aside)], "mounts": "/run/mounts"}
    assert disk.workers.run.await_args_list == [call(job)]
    for each in (store, again):
        each.close()


def test_a_layer_with_nothing_in_it(disk: Disk) -> None:
    assert not disk.info("1", inodes=1, entries=0, root=(0o755, 0, 0)).shows
    assert not disk.info("1", inodes=2, skeleton=True).shows
    assert disk.info("1", inodes=1, entries=1).shows


@pytest.mark.parametrize(("release", "protected"), [((6, 18), False), ((7, 0), True)])
async def test_fs_verity_where_there_is_one(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, release: tuple[int, int], protected: bool
) -> None:
    """It has a file read through the page cache, which older kernels do not do right."""
    monkeypatch.setattr(layer_probe, "release", lambda: release)
    monkeypatch.setattr(verity, "is_supported", lambda _path: True)
    store = disk.store("erofs")
    store.prepare()
    path = store.new_file()
    disk.file("", os.path.basename(path))
    result = RESULT | {"has_root": True, "attributed": False, "entries": 2, "root": [0o750, 1, 2], "skeleton_bytes": 0}
    store.want([DIGEST])
    await store.publish([store.stage(path, result, DIGEST, DIGEST)], store.mark(), lambda: None, nothing)
    await store.settle()
    job = {"job": "protect", "paths": [str(disk.layers / f"{'0' * 64}.erofs")]}
    assert disk.workers.run.await_args_list == [call(job)] * protected
    store.close()


def test_what_is_mostly_holes_is_not_protected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would hash every block of it, and keep the digests on the disk."""
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    dense.write_bytes(b"x" * 100_000)
    with sparse.open("wb") as file:
        file.write(b"x" * 100_000)
        file.truncate(1 << 40)
    protected: list[str] = []
    monkeypatch.setattr(verity, "enable", protected.append)
    assert jobs.run({"job": "protect", "paths": [str(dense), str(sparse), str(tmp_path / "gone")]}, cast("Any", None)) == {
        "ok": {}
    }
    assert protected == [str(dense)]
