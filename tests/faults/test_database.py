"""A database that is damaged or lost: containers and sandboxes are found again, and images are kept."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from proto import api_pb2 as cri
from runtime.shims import client
from tests.harness.kubelet import Kubelet, some_limit

pytestmark = pytest.mark.root


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


def one_page(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + os.urandom(4096) + content[8192:])


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6000])


def lost(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [garbage, one_page, truncated, lost])
def test_everything_is_found_again(kubelet: Kubelet, damage: object) -> None:
    pod = kubelet.pod()
    running, created, ended = pod.run("/bin/sleep", "100"), pod.create("/bin/echo", "later"), pod.shell("exit 3")
    running.update(**some_limit(512))
    stopped = kubelet.pod()
    stopped.shell("exit 4")
    stopped.stop()
    removed = kubelet.pod()
    removed.remove()
    before = {c.id: c.status() for c in (running, created, ended)}
    sandboxes = {p.id: p.status() for p in (pod, stopped)}
    images = kubelet.images.ListImages(cri.ListImagesRequest())

    kubelet.daemon.kill()
    database = kubelet.daemon.root / "state.db"
    carry_over(database)
    assert callable(damage)
    damage(database)
    kubelet.daemon.start()

    assert {c.id: c.status() for c in (running, created, ended)} == before
    assert {p.id: p.status() for p in (pod, stopped)} == sandboxes
    listed = kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    assert {sandbox.id for sandbox in listed} == set(sandboxes)
    assert kubelet.images.ListImages(cri.ListImagesRequest()) == images
    log = kubelet.daemon.log_path.read_text()
    assert "taken from their copies" in log
    if damage is not lost:
        (kept,) = kubelet.daemon.root.glob("state.db.damaged-*T*Z")
        assert str(kept) in log
    created.start()
    assert created.wait().exit_code == 0
    assert running.sh("echo alive") == "alive\n"
    another = kubelet.pod()
    assert another.status().network.ip != pod.status().network.ip, "the lease is known"
    assert another.shell("exit 5").status().exit_code == 5


def carry_over(database: Path) -> None:
    """Have everything in the database and nothing in its log, so that damage to the database is damage."""
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def test_container_of_which_nothing_is_known_is_ended(kubelet: Kubelet) -> None:
    """Neither the database nor a copy has it: its shim is told to kill it, and nothing stays."""
    pod = kubelet.pod()
    container = pod.run("/bin/sleep", "100")
    daemon = kubelet.daemon
    daemon.kill()
    bundle = daemon.state / "containers" / container.id
    (bundle / "record.json").unlink()
    (daemon.root / "state.db").unlink()
    daemon.start()
    assert not client.shim_alive(str(bundle))
    assert kubelet.runtime.ListContainers(cri.ListContainersRequest()).containers == []
    assert pod.status().state == cri.SANDBOX_READY
