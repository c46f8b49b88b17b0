"""Each fault test has a daemon of its own to kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from proto import admin_pb2 as admin
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
    daemon.start()
    assert daemon.client is not None
    image = daemon.client.admin.AddRootfs(admin.AddRootfsRequest(name="localhost/busybox:test", directory=str(rootfs)))
    yield Kubelet(daemon, image.image_id)
    if daemon.process is not None and daemon.process.poll() is not None:
        daemon.wait_death()
    if daemon.process is None:
        daemon.start()
    daemon.remove_all()
    left = daemon.leftovers()
    daemon.destroy()
    assert left == []
