"""One daemon for all API tests of a run; each test must leave it as it found it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.rootfs import make_rootfs
from tests.harness.waiting import wait_until


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    running = Daemon()
    try:
        yield running.start()
    finally:
        running.destroy()


@pytest.fixture
def kubelet(daemon: Daemon, rootfs: Path) -> Iterator[Kubelet]:
    """A kubelet whose pods are removed after the test, whereupon nothing may be left of them."""
    yield Kubelet.on(daemon, rootfs)
    crashed = daemon.crashed()
    if daemon.process is None:  # and it is there for the tests that follow, whatever this one has done to it
        daemon.start()
    daemon.remove_all()
    assert daemon.leftovers() == []
    assert crashed == ""


@pytest.fixture
def no_images_stay(kubelet: Kubelet) -> Iterator[None]:
    """Of what a test builds: its steps, its caches, and the images that it calls …/built…."""
    yield
    wait_until(lambda: not list(kubelet.daemon.root.glob("builds/*")))
    kubelet.client.admin.PruneBuildCache(admin.PruneBuildCacheRequest())
    for image in kubelet.images.ListImages(cri.ListImagesRequest()).images:
        if any("/built" in tag for tag in image.repo_tags):
            kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image.id)))


@pytest.fixture(scope="session")
def daemon_netns() -> str:
    """The network namespace of the daemon, which is that of the tests."""
    return os.readlink("/proc/self/ns/net")
