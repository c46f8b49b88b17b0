"""shim/layer_probe.py: whether layers can be files here, and what it says where they cannot."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imagesvc.erofs import sample
from kernel import lsm, mounts, syscalls
from shim import layer_probe
from tests.harness import layer_files
from tests.harness.small_disk import FILLER, SmallDisk

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def _able(tmp_path: Path) -> None:
    layer_files.need(tmp_path)


IMAGE = sample.image(layer_probe.NAME, layer_probe.TEXT)


def test_this_host(tmp_path: Path) -> None:
    assert layer_probe.probe(str(tmp_path), IMAGE) == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("call", "number", "why"),
    [
        ("fsopen", errno.ENODEV, "this kernel has no EROFS"),
        ("fsopen", errno.ENOSYS, "this kernel has no fsopen"),
        ("fsconfig", errno.ENOTBLK, "that takes Linux 6.12"),
        ("fsmount", errno.EPERM, "cannot mount one from its file system"),
        ("mount_setattr", errno.EINVAL, "the ids of one cannot be mapped"),
    ],
)
def test_what_the_kernel_may_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, why: str) -> None:
    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(syscalls, call, refuse)
    assert why in layer_probe.probe(str(tmp_path), IMAGE)
    assert os.listdir(tmp_path) == []


def test_a_kernel_without_user_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can want mapped ids there."""

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "user.max_user_namespaces")

    monkeypatch.setattr(syscalls, "unshare", refuse)
    assert layer_probe.probe(str(tmp_path), IMAGE) == ""


@contextmanager
def tmpfs(place: Path) -> Iterator[None]:
    mounts.tmpfs(str(place), 1 << 20)
    try:
        yield
    finally:
        mounts.detach(str(place))


def test_a_file_system_that_it_cannot_read_from(tmp_path: Path) -> None:
    with tmpfs(tmp_path):
        assert "a file system on a disk" in layer_probe.probe(str(tmp_path), IMAGE)
        assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    assert "cannot write to" in layer_probe.probe(str(tmp_path / "missing"), IMAGE)


def test_bytes_that_are_not_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other: Any = sample.image(layer_probe.NAME, b"other")
    assert layer_probe.probe(str(tmp_path), other) == "what was read of it is not what was written"


def test_selinux_on_an_older_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lsm, "selinux_enabled", lambda: True)
    monkeypatch.setattr(layer_probe, "release", lambda: (6, 18))
    assert layer_probe.probe(str(tmp_path), IMAGE) == ""
    monkeypatch.setattr(layer_probe, "release", lambda: (6, 12))
    assert "with SELinux, Linux before 6.18" in layer_probe.probe(str(tmp_path), IMAGE)


def test_the_kernels_release() -> None:
    assert ".".join(map(str, layer_probe.release())) == ".".join(os.uname().release.split(".")[:2])


def test_a_file_system_without_direct_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert "cannot read past the page cache" in layer_probe.probe(str(tmp_path), IMAGE)


def test_without_directio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 6.12 mounts a file, and does not know that option."""
    real = syscalls.fsconfig

    def fsconfig(fd: int, command: int, key: bytes | None = None, value: Any = None) -> None:
        if key == b"directio":
            raise OSError(errno.EINVAL, "Unknown parameter")
        real(fd, command, key, value)

    monkeypatch.setattr(syscalls, "fsconfig", fsconfig)
    assert layer_probe.probe(str(tmp_path), IMAGE) == ""


def test_debians_tools_agree(tmp_path: Path) -> None:
    """fsck.erofs on the image that is tried with."""
    path = tmp_path / "image"
    path.write_bytes(IMAGE)
    done = subprocess.run(["fsck.erofs", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_full_disk_decides_nothing(tmp_path: Path) -> None:
    """Where there are such layers they are tried: a daemon that starts now must make them as before once there is room."""
    with SmallDisk(tmp_path / "disk", 8) as disk:
        layer = disk.path / "layer.erofs"
        layer.write_bytes(IMAGE)
        disk.fill()
        assert layer_probe.probe(str(disk.path), IMAGE) == ""
        layer.write_bytes(bytes(len(IMAGE)))
        assert "cannot mount one" in layer_probe.probe(str(disk.path), IMAGE)
        layer.unlink()
        disk.fill()
        assert "No space left" in layer_probe.probe(str(disk.path), IMAGE)
        assert sorted(os.listdir(disk.path)) == [FILLER, "lost+found"]
