"""kubeadm with the files and the guide of this repository. CRISP_KUBERNETES names the directory with the program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.harness.daemon import ROOT, Daemon

MANIFESTS = ROOT / "manifests"
KUBEADM = Path(os.environ.get("CRISP_KUBERNETES", "/nonexistent")) / "kubeadm"
SOCKET = "unix:///run/crisp/crisp.sock"

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("own_network"),
]
needs_kubeadm = pytest.mark.skipif(
    not KUBEADM.exists(), reason="kubeadm is not at hand: set CRISP_KUBERNETES to the directory that has it"
)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(KUBEADM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


def uplink() -> None:
    """kubeadm wants an address to advertise."""
    for command in (
        "link add up0 type veth peer name up1",
        "addr add 192.0.2.2/24 dev up0",
        "link set up0 up",
        "link set up1 up",
        "route add default via 192.0.2.1",
    ):
        subprocess.run(["ip", *command.split()], check=True)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    running = Daemon()
    running.start()
    yield running
    running.destroy()


@needs_kubeadm
@pytest.mark.parametrize("name", ["kubeadm-config.yaml", "kubeadm-join.yaml"])
def test_kubeadm_takes_the_files(name: str) -> None:
    uplink()
    result = run("config", "validate", "--config", str(MANIFESTS / name))
    assert result.returncode == 0, result.stderr


@needs_kubeadm
def test_where_kubeadm_keeps_the_socket_is_what_the_guide_says(own_network: None, daemon: Daemon, tmp_path: Path) -> None:
    """A dry run of init against a real daemon: the files are those that the guide has one edit."""
    uplink()
    version = run("version", "-o", "short").stdout.strip()
    config = (MANIFESTS / "kubeadm-config.yaml").read_text().replace(SOCKET, f"unix://{daemon.socket}")
    cluster = {"apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration", "kubernetesVersion": version}
    (tmp_path / "init.yaml").write_text(f"{config}---\n{yaml.safe_dump(cluster)}")
    written = tmp_path / "written"
    written.mkdir()
    # What this machine lacks for a control plane is no concern of the test's; nothing is written but here.
    arguments = ("init", "--dry-run", "--config", str(tmp_path / "init.yaml"), "--ignore-preflight-errors=all")
    result = run(*arguments, KUBEADM_INIT_DRYRUN_DIR=str(written))
    assert result.returncode == 0, result.stderr
    assert "container runtime is not running" not in result.stderr
    holders = {
        path.name for path in written.rglob("*") if path.is_file() and daemon.socket in path.read_text(errors="replace")
    }
    minor = int(version.split(".")[1])
    if minor >= 34:
        assert holders == {"instance-config.yaml", "config.yaml"}
    else:
        assert holders == {"kubeadm-flags.env"}
    guide = (ROOT / "docs" / "operating.md").read_text()
    assert all(f"/var/lib/kubelet/{name}" in guide for name in holders)


def test_both_files_name_the_default_socket() -> None:
    for name in ("kubeadm-config.yaml", "kubeadm-join.yaml"):
        document = yaml.safe_load((MANIFESTS / name).read_text())
        assert document["nodeRegistration"]["criSocket"] == SOCKET
        assert name in (ROOT / "docs" / "operating.md").read_text()
