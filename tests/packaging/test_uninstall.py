"""`crisp uninstall`: nothing stays but what is asked to stay, and pods are never ended unasked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import ROOT, Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.rootfs import make_rootfs
from tests.packaging.host_state import host_state

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_network")]

NETWORK = (
    '[network]\nbridge = "crispuninst"\ntable = "crisp_uninstall"\nsubnets = ["10.211.0.0/24", "fd63:7269:7371::/64"]\n'
)


@pytest.fixture
def daemon(own_network: None) -> Iterator[Daemon]:
    running = Daemon(NETWORK)
    yield running
    running.stop()
    done = uninstall(running, "--end-pods", "--yes", "--grace", "0")
    running.destroy()
    assert done.returncode == 0, done.stderr


@pytest.fixture
def kubelet(daemon: Daemon, tmp_path: Path) -> Kubelet:
    daemon.start()
    return Kubelet.on(daemon, make_rootfs(tmp_path / "rootfs"))


def uninstall(daemon: Daemon, *options: str) -> subprocess.CompletedProcess[str]:
    directories = ("--config", str(daemon.config), "--root", str(daemon.root), "--state", str(daemon.state))
    command = [sys.executable, str(ROOT / "crisp.py"), "uninstall", *directories, *options]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)


def test_everything_goes_when_pods_may_be_ended(daemon: Daemon, kubelet: Kubelet, tmp_path: Path) -> None:
    daemon.stop()
    assert uninstall(daemon, "--yes").returncode == 0
    before = host_state(daemon.directory)
    assert before["mounts"] == before["cgroups"] == before["processes"] == []

    daemon.start()
    kubelet = Kubelet.on(daemon, tmp_path / "rootfs")
    asked = kubelet.pod().run_trap("echo asked; exit 0", "TERM")
    log = Path(asked.status().log_path)
    shared = kubelet.pod(pid=cri.POD)
    shared.run("/bin/sleep", "1000")
    shared.run("/bin/true").wait()
    daemon.stop()
    during = host_state(daemon.directory)
    assert all(during[kind] != before[kind] for kind in before)

    refused = uninstall(daemon, "--yes")
    assert refused.returncode == 1
    assert "2 containers run here" in refused.stderr
    assert host_state(daemon.directory) == during

    listed = uninstall(daemon, "--dry-run")
    assert listed.returncode == 0
    assert host_state(daemon.directory) == during
    for trace in (
        "interface crispuninst",
        "nft",
        f"cgroup {daemon.directory.name}",
        f"file {daemon.root}/layers",
        "container ",
    ):
        assert trace in listed.stdout

    unasked = uninstall(daemon, "--end-pods")
    assert unasked.returncode == 1
    assert "Remove all of this?" in unasked.stdout
    assert host_state(daemon.directory) == during

    done = uninstall(daemon, "--end-pods", "--yes")
    assert done.returncode == 0, done.stderr
    assert host_state(daemon.directory) == before
    assert "asked" in log.read_text()
    assert not daemon.root.exists()
    assert not daemon.state.exists()
    assert "nothing of crisp" in uninstall(daemon).stderr


def test_data_is_kept_and_serves_again(daemon: Daemon, kubelet: Kubelet) -> None:
    kubelet.pod().run("/bin/sleep", "1000")
    daemon.kill()  # what a crash leaves is no harder
    assert uninstall(daemon, "--yes", "--keep-data", "--end-pods", "--grace", "0").returncode == 0
    assert not daemon.state.exists()
    assert sorted(os.listdir(daemon.root / "containers")) == []
    daemon.start()
    assert daemon.client is not None
    assert daemon.client.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items == []
    assert kubelet.pod().run("/bin/sh", "-c", "exit 3").wait().exit_code == 3


def test_a_daemon_that_runs_is_not_disturbed(daemon: Daemon, kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    refused = uninstall(daemon, "--yes", "--end-pods")
    assert refused.returncode == 1
    assert "another crisp uses" in refused.stderr
    assert container.status().state == cri.CONTAINER_RUNNING


def test_what_is_not_crisps_stays(daemon: Daemon) -> None:
    subprocess.run(["ip", "link", "add", "crispuninst", "type", "bridge"], check=True)
    try:
        daemon.start()
        daemon.stop()
        (daemon.root / "note").write_text("the administrator's")
        assert uninstall(daemon, "--yes").returncode == 0
        assert os.listdir(daemon.root) == ["note"]
        subprocess.run(["ip", "link", "show", "crispuninst"], check=True, capture_output=True)
    finally:
        subprocess.run(["ip", "link", "del", "crispuninst"], check=True)


def uninstall_without_privileges(base: Path) -> subprocess.CompletedProcess[str]:
    """As when the package is removed in the building of a container image."""
    config = base / "crisp.toml"
    config.write_text(f'[cgroup]\nparent = "/{base.name}"\nshims = "/{base.name}/shims"\n{NETWORK}')
    without = ["setpriv", "--bounding-set=-net_admin,-sys_admin", "--inh-caps=-net_admin,-sys_admin"]
    directories = ("--config", str(config), "--root", str(base / "lib"), "--state", str(base / "run"))
    command = [*without, sys.executable, str(ROOT / "crisp.py"), "uninstall", *directories, "--yes", "--end-pods"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_socket_that_another_program_has_stays(daemon: Daemon) -> None:
    """containerd's, in whose place the daemon answers where there is none."""
    path = daemon.directory / "containerd.sock"
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace('cadvisor_socket = ""', f'cadvisor_socket = "{path}"'))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert uninstall(daemon, "--yes").returncode == 0
        assert path.is_socket()
    assert uninstall(daemon, "--yes").returncode == 0
    assert not path.exists(), "nobody has it any more"


def test_without_privileges_there_is_nothing(tmp_path: Path) -> None:
    done = uninstall_without_privileges(tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "nothing of crisp" in done.stderr


@pytest.fixture
def foreign_table() -> Iterator[None]:
    """One of the same name, as another crisp on this host has it."""
    subprocess.run(["nft", "add", "table", "inet", "crisp_uninstall"], check=True)
    yield
    subprocess.run(["nft", "delete", "table", "inet", "crisp_uninstall"], check=True)


def test_files_go_without_the_right_to_look_at_tables(foreign_table: None, tmp_path: Path) -> None:
    (tmp_path / "lib/blobs").mkdir(parents=True)
    done = uninstall_without_privileges(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"removed  file {tmp_path}/lib/blobs\n"
    assert not (tmp_path / "lib").exists()


def test_a_bridge_that_may_not_be_removed_is_told(tmp_path: Path) -> None:
    mac = ("address", "02:c5:0a:c9:00:07")
    subprocess.run(["ip", "link", "add", "crispuninst", *mac, "type", "bridge"], check=True)
    try:
        done = uninstall_without_privileges(tmp_path)
    finally:
        subprocess.run(["ip", "link", "del", "crispuninst"], check=True)
    assert done.returncode == 1
    assert "interface crispuninst cannot be removed: CAP_NET_ADMIN" in done.stderr
