"""Project quotas on an ext4 that counts by project; most kernels can, some are built without."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel import project_quota

pytestmark = pytest.mark.root


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Path]:
    """A file system with project quotas."""
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    mkfs = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    assert mkfs
    subprocess.run([mkfs, "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota", image], check=True)
    subprocess.run(["modprobe", "-q", "quota_v2"], check=False)
    mounted = subprocess.run(["mount", "-o", "loop,prjquota", image, mount], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this kernel mounts no file system with project quotas: {mounted.stderr.strip()}")
    yield mount
    subprocess.run(["umount", mount], check=True)


def test_what_lies_below_is_counted(counted: Path) -> None:
    assert project_quota.available(str(counted))
    directory = counted / "layer"
    directory.mkdir()
    project_quota.assign(str(directory), 1 << 20)
    before = project_quota.usage(str(counted), 1 << 20)
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "deep" / "er" / "file").write_bytes(b"x" * 1_000_000)
    os.sync()
    after = project_quota.usage(str(counted), 1 << 20)
    assert 1_000_000 <= after.bytes - before.bytes < 1_100_000
    assert after.inodes - before.inodes == 3
    (counted / "outside").write_bytes(b"x" * 1_000_000)
    assert project_quota.usage(str(counted), 1 << 20).inodes == after.inodes
    assert project_quota.usage(str(counted), 12345) == (0, 0)


def test_file_system_without() -> None:
    assert not project_quota.available("/proc")
