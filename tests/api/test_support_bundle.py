"""`crisp support-bundle`: state, and no secret. And completion of names that the daemon knows."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import ROOT
from tests.harness.kubelet import Kubelet

pytestmark = pytest.mark.root

SECRET = "correct-horse-battery-staple"


def crisp(kubelet: Kubelet, *arguments: str, **environment: str) -> str:
    command = [sys.executable, str(ROOT / "crisp.py"), *arguments]
    settings = {**os.environ, "CRISP_SOCKET": kubelet.daemon.socket, **environment}
    result = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_state_without_secrets(kubelet: Kubelet, tmp_path: Path) -> None:
    config = cri.ContainerConfig(
        envs=[cri.KeyValue(key="PASSWORD", value=SECRET.encode())],
        args=[SECRET],
        annotations={"kubectl.kubernetes.io/last-applied-configuration": SECRET},
        labels={"app": SECRET},
    )
    container = kubelet.pod().run("/bin/sh", "-c", "echo $PASSWORD; exec sleep 1000", config=config)
    target = tmp_path / "bundle.tar.gz"
    assert crisp(kubelet, "support-bundle", str(target)).strip() == str(target)
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as archive:
        parts = {member.name: file.read() for member in archive if (file := archive.extractfile(member)) is not None}
    assert [name for name, data in parts.items() if SECRET.encode() in data] == []
    assert container.id.encode() in parts["crisp-support/daemon/containers.txt"]
    assert b"last-applied-configuration" in parts["crisp-support/daemon/containers.txt"]
    assert b"RuntimeReady" in parts["crisp-support/daemon/status.txt"]
    assert b"ok kernel" in parts["crisp-support/check.txt"]
    assert b"crisp-shim" in parts["crisp-support/host/processes.txt"]


def test_a_bundle_without_a_daemon(kubelet: Kubelet, tmp_path: Path) -> None:
    target = tmp_path / "bundle.tar.gz"
    crisp(kubelet, "--socket", str(tmp_path / "none.sock"), "support-bundle", str(target))
    with tarfile.open(target) as archive:
        status = archive.extractfile("crisp-support/daemon/status.txt")
        assert status is not None
        assert status.read().startswith(b"not collected: no daemon at")


def test_completion_knows_containers_and_images(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    asked = {"_CRISP_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    command = "from runtime.cli.main import main; main(prog_name='crisp')"
    for words, wanted in (
        (f"crisp exec {container.id[:6]}", container.id[:13]),
        ("crisp attach ", container.id[:13]),
    ):
        settings = {**os.environ, "CRISP_SOCKET": kubelet.daemon.socket, **asked, "COMP_WORDS": words}
        result = subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=settings, capture_output=True, text=True)
        assert f"plain,{wanted}" in result.stdout.split(), result.stderr
