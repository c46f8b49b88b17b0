"""A second place for a pod's network namespace, in a directory that everybody can read."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel import mounts, namespaces

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    mounts.detach_all(str(tmp_path))


@pytest.mark.parametrize("mounted", [False, True])
def test_who_locks_the_directory_and_keeps_it_holds_up_no_pod(directory: Path, mounted: bool) -> None:
    place = str(directory / "crisp-1")
    if mounted:
        namespaces.publish("/proc/self/ns/net", str(directory / "crisp-0"))
    fd = os.open(directory, os.O_RDONLY)  # as any user of the node can
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        namespaces.publish("/proc/self/ns/net", place)
    finally:
        os.close(fd)
    assert namespaces.is_pinned(place)
    assert os.stat(place).st_ino == os.stat("/proc/self/ns/net").st_ino
    [mount] = [mount for mount in mounts.below(str(directory)) if os.fsdecode(mount.mount_point) == str(directory)]
    assert mount.mount_point == os.fsencode(directory)
    namespaces.unpin(place)
    assert not os.path.exists(place)


def test_the_directory_is_everybodys_to_read_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0o077)
    try:
        namespaces.publish("/proc/self/ns/net", str(directory / "new" / "crisp-1"))
    finally:
        os.umask(before)
    assert (directory / "new").stat().st_mode & 0o777 == 0o755
    assert namespaces.is_pinned(str(directory / "new" / "crisp-1"))
