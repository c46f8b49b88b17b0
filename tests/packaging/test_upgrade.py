"""A next version takes over from this one while containers run, and this one refuses to take over again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from proto import api_pb2 as cri
from proto import shim_protocol
from proto.version import VERSION
from runtime.store.migrations import MIGRATIONS
from tests.harness.daemon import ROOT, STOP_SECONDS, Daemon
from tests.harness.kubelet import Container, Kubelet
from tests.harness.rootfs import make_rootfs
from tests.harness.waiting import wait_until
from tests.packaging import next_version
from tests.packaging.installed import build_wheel, install

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_network")]


@dataclass
class Versions:
    """Wheels of both, and where either is installed."""

    place: Path
    this: Path
    next: Path

    def put(self, wheel: Path) -> list[str]:
        """Install one in place of the other, as an upgrade does: nothing of the old one's files is left."""
        shutil.rmtree(self.place, ignore_errors=True)
        return install(wheel, self.place)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("wheels")
    next_version.make_next(base / "tree")
    return build_wheel(ROOT, base / "this"), build_wheel(base / "tree", base / "next")


@pytest.fixture
def versions(wheels: tuple[Path, Path], tmp_path: Path) -> Versions:
    return Versions(tmp_path / "site", *wheels)


@pytest.fixture
def daemon(own_network: None, versions: Versions) -> Iterator[Daemon]:
    running = Daemon()
    running.program = versions.put(versions.this)
    yield running
    if running.process is None:
        running.program = versions.put(versions.next)
        running.start()
    running.destroy()


@pytest.fixture
def kubelet(daemon: Daemon, tmp_path: Path) -> Kubelet:
    daemon.start()
    return Kubelet.on(daemon, make_rootfs(tmp_path / "rootfs"))


def version(kubelet: Kubelet) -> str:
    return str(kubelet.runtime.Version(cri.VersionRequest()).runtime_version)


def schema(daemon: Daemon) -> int:
    with closing(sqlite3.connect(daemon.root / "state.db")) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


def pid_of(container: Container) -> int:
    reply = container.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container.id, verbose=True))
    return int(json.loads(reply.info["info"])["pid"])


def refused(daemon: Daemon) -> str:
    """Start a daemon that ends again; what it says."""
    directories = ("--config", str(daemon.config), "--root", str(daemon.root), "--state", str(daemon.state))
    command = [*daemon.program, "serve", *directories]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STOP_SECONDS)
    assert done.returncode == 1
    return done.stderr


def test_containers_go_on(kubelet: Kubelet, daemon: Daemon, versions: Versions) -> None:
    assert version(kubelet) == VERSION
    pod = kubelet.pod()
    writer = pod.run("/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.05; done")
    stopped = pod.run_trap("exit 7", "TERM")
    ended = pod.run_trap("exit 5", "TERM")
    pids = {container.id: pid_of(container) for container in (writer, stopped, ended)}
    daemon.stop()
    daemon.program = versions.put(versions.next)
    os.kill(pids[ended.id], signal.SIGTERM)  # while no daemon is there
    daemon.start()

    assert version(kubelet) == next_version.VERSION
    assert ended.wait().exit_code == 5
    for container in (writer, stopped):
        assert container.status().state == cri.CONTAINER_RUNNING
        assert pid_of(container) == pids[container.id]

    # What old shims are asked for by the new daemon.
    assert writer.sh("echo from the old shim") == "from the old shim\n"
    written = len(writer.log_lines())
    wait_until(lambda: len(writer.log_lines()) > written)
    log = Path(writer.status().log_path)
    log.rename(f"{log}.1")
    writer.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=writer.id))
    wait_until(lambda: len(writer.log_lines()) > 0)
    numbers = [int(line.split()[-1]) for part in (f"{log}.1", str(log)) for line in Path(part).read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1)), "no line is lost over the upgrade"
    writer.update(memory_limit_in_bytes=64 << 20)
    stats = writer.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=writer.id)).stats
    assert stats.memory.working_set_bytes.value > 0
    stopped.stop(timeout=STOP_SECONDS)
    assert stopped.status().exit_code == 7

    # New containers have new shims, in old pods and in new ones.
    for container in (pod.run_trap("exit 9", "TERM"), kubelet.pod().run_trap("exit 9", "TERM")):
        assert container.sh("echo from the new shim") == "from the new shim\n"
        container.stop(timeout=STOP_SECONDS)
        assert container.status().exit_code == 9
    daemon.stop()
    assert schema(daemon) == len(MIGRATIONS) + 1


def test_no_way_back_but_nothing_is_harmed(kubelet: Kubelet, daemon: Daemon, versions: Versions) -> None:
    old = kubelet.pod().run("/bin/sleep", "1000")
    daemon.stop()
    daemon.program = versions.put(versions.next)
    daemon.start()
    new = kubelet.pod().run("/bin/sleep", "1000")
    pids = [pid_of(container) for container in (old, new)]
    daemon.stop()

    daemon.program = versions.put(versions.this)
    assert f"schema {len(MIGRATIONS) + 1}, this crisp knows {len(MIGRATIONS)}: a newer crisp has used it" in refused(daemon)
    # A newer shim protocol alone is as good a reason.
    with closing(sqlite3.connect(daemon.root / "state.db")) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    message = refused(daemon)
    assert f"container {new.id}: its shim speaks version {shim_protocol.VERSION + 1} and this crisp" in message
    with closing(sqlite3.connect(daemon.root / "state.db")) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    for pid in pids:
        os.kill(pid, 0)

    daemon.program = versions.put(versions.next)
    daemon.start()
    for container in (old, new):
        assert container.status().state == cri.CONTAINER_RUNNING
        assert container.sh("echo $0") == "/bin/sh\n"
