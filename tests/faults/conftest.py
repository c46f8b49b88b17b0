"""Each fault test has a daemon of its own to kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.rootfs import make_rootfs


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture
def kubelet(rootfs: Path) -> Iterator[Kubelet]:
    """A kubelet on a fresh daemon, after which nothing may be left."""
    daemon = Daemon()
    try:
        yield Kubelet.on(daemon.start(), rootfs)
        daemon.crashed()  # as it was told to, at a failpoint
        if daemon.process is None:
            daemon.start()
        daemon.remove_all()
        left = daemon.leftovers()
    finally:
        daemon.destroy()
    assert left == []
