"""kernel/verity.py, at the seam of its system calls: not every file system has it."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from kernel import verity

DIGEST = bytes(range(32))


class Kernel:
    """What ioctl(2) and the attributes of one file answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, supported: bool = True) -> None:
        self.on = False
        self.digest = DIGEST
        self.kept: dict[str, bytes] = {}
        self._supported = supported
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)
        monkeypatch.setattr(os, "setxattr", lambda _file, name, value: self.kept.update({name: value}))
        monkeypatch.setattr(os, "getxattr", self.getxattr)

    def ioctl(self, _descriptor: int, request: int, argument: Any) -> None:
        if not self._supported:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        if request == 0x40806685:  # FS_IOC_ENABLE_VERITY
            assert (len(argument), struct.unpack_from("=III", argument)) == (128, (1, 1, 4096))
            if self.on:
                raise OSError(errno.EEXIST, "File exists")
            self.on = True
            return
        assert request == 0xC0046686  # FS_IOC_MEASURE_VERITY
        if not self.on:
            raise OSError(errno.ENODATA, "No data available")
        assert isinstance(argument, array.array)
        assert struct.unpack_from("=HH", argument) == (1, 32)
        argument[4:] = array.array("B", self.digest)

    def getxattr(self, _file: int, name: str) -> bytes:
        if name not in self.kept:
            raise OSError(errno.ENODATA, "No data available")
        return self.kept[name]


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "file").write_bytes(b"layer")
    return str(tmp_path / "file")


def test_it_is_switched_on_and_the_digest_kept(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    assert verity.is_supported(path)
    assert verity.enable(path) == f"sha256:{DIGEST.hex()}"
    assert kernel.kept == {verity.XATTR: f"sha256:{DIGEST.hex()}".encode()}
    assert verity.is_supported(path)
    assert verity.enable(path) == f"sha256:{DIGEST.hex()}", "a second time, as after a crash"
    assert verity.is_as_kept(path)
    kernel.digest = bytes(32)
    assert not verity.is_as_kept(path)


def test_a_file_system_without_it(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, supported=False)
    assert not verity.is_supported(path)
    assert verity.is_as_kept(path)
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        verity.enable(path)


def test_a_copy_on_another_disk_is_no_other_file(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    verity.enable(path)
    kernel.on = False
    assert verity.is_as_kept(path)


def test_this_file_system(path: str) -> None:
    """Whatever it has, nothing fails."""
    if verity.is_supported(path):
        assert verity.enable(path).startswith("sha256:")
        with pytest.raises(OSError, match="not permitted"):
            Path(path).write_bytes(b"changed")
    assert verity.is_as_kept(path)
