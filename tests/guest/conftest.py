"""Tests for a whole machine of its own: pure cgroup v2 with all controllers, systemd as the first process, AppArmor.

`make test-guest` runs them in a guest; CRISP_IN_GUEST says that this is one. They use the daemon of tests/api.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel import cgroups
from kernel.cgroups import Mode
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.rootfs import make_rootfs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("CRISP_IN_GUEST"):
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="runs in a guest: make test-guest"))


@pytest.fixture(scope="session")
def guest_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    found = cgroups.detect()
    assert found.mode is Mode.V2
    assert {"cpu", "io", "memory", "pids"} <= set(found.controllers)
    assert os.path.isdir("/run/systemd/system")
    running = Daemon()
    running.start()
    yield running
    running.destroy()


@pytest.fixture
def kubelet(guest_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:

    assert guest_daemon.client is not None
    root = tmp_path_factory.getbasetemp() / "rootfs"
    if not root.exists():
        make_rootfs(root)
    yield Kubelet.on(guest_daemon, root)
    guest_daemon.remove_all()
    assert guest_daemon.leftovers() == []
