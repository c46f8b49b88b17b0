"""Figures for Prometheus, SIGHUP, notices to systemd, `crisp stats` and `crisp events`."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import ROOT, Daemon
from tests.harness.host import free_port
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def watched(port: int, rootfs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Kubelet, socket.socket]]:
    """A daemon that is told to talk, and the socket on which systemd would listen."""
    daemon = Daemon(f'[metrics]\naddress = "127.0.0.1:{port}"\ncadvisor_socket = ""\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(daemon.directory / "notify"))
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(daemon.directory / "notify"))
        daemon.start()
        try:
            yield Kubelet.on(daemon, rootfs), systemd
        finally:
            daemon.destroy()


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def hang_up(kubelet: Kubelet) -> None:
    assert kubelet.daemon.process is not None
    os.kill(kubelet.daemon.process.pid, signal.SIGHUP)


def test_figures(watched: tuple[Kubelet, socket.socket], port: int) -> None:
    kubelet, _ = watched
    pod = kubelet.pod()
    pod.run("/bin/sleep", "1000")
    before = scrape(port)
    assert before['crisp_containers{state="running"}'] == 1
    assert before["crisp_shims"] == 1
    assert before['crisp_rpc_duration_seconds_count{method="StartContainer"}'] == 1
    assert before["crisp_recovery_seconds"] > 0
    with pytest.raises(Exception, match="no container"):
        kubelet.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id="0" * 64))
    with pytest.raises(Exception, match="registry"):
        kubelet.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=f"127.0.0.1:{free_port()}/x:1")))
    after = scrape(port)
    assert after['crisp_rpc_errors_total{code="NOT_FOUND",method="ContainerStatus"}'] == 1
    assert sum(value for name, value in after.items() if name.startswith("crisp_image_pull_duration_seconds_count")) == 1
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/other", timeout=60)


def test_reload(watched: tuple[Kubelet, socket.socket]) -> None:
    kubelet, systemd = watched
    daemon = kubelet.daemon
    assert systemd.recv(1000) == b"READY=1"
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace('"debug"', '"warning"').replace(daemon.cgroup_parent, "/elsewhere", 1))
    hang_up(kubelet)
    assert systemd.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert systemd.recv(1000) == b"READY=1"
    said = json.loads(daemon.tail().splitlines()[-1])
    assert (said["changed"], said["needs_restart"]) == (["log.level"], ["cgroup.parent"])
    length = len(daemon.log_path.read_text())
    kubelet.pod().remove()
    later = [json.loads(line)["level"] for line in daemon.log_path.read_text()[length:].splitlines()]
    assert set(later) <= {"warning", "error"}, "nothing below a warning is said any more"
    daemon.config.write_text("not toml")
    hang_up(kubelet)
    systemd.recv(1000)
    assert systemd.recv(1000) == b"READY=1"
    said = json.loads(daemon.tail().splitlines()[-1])
    assert "not TOML" in said["error"] or "line 1" in said["error"]
    daemon.config.write_text(text)
    hang_up(kubelet)
    systemd.recv(1000)
    systemd.recv(1000)
    kubelet.pod().remove()
    assert len(daemon.log_path.read_bytes()) > length
    daemon.stop()
    assert systemd.recv(1000) == b"STOPPING=1"


def crisp(kubelet: Kubelet, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "crisp.py"), "--socket", kubelet.daemon.socket, *arguments]


def test_stats(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    pod.run("/bin/sh", "-c", "while true; do :; done", config=cri.ContainerConfig(metadata={"name": "burner"}))
    command = crisp(kubelet, "stats", "--format", "json", "--interval", "0.5")
    rows = map(json.loads, subprocess.run(command, capture_output=True, check=True).stdout.splitlines())
    total, burner = rows
    assert (total["pod"], total["container"], burner["container"]) == (f"tests/{pod.config.metadata.name}", "", "burner")
    assert burner["cpu_nano_cores"] > 100_000_000
    text = subprocess.run(crisp(kubelet, "stats", "--interval", "0.2"), capture_output=True, text=True, check=True).stdout
    assert "burner" in text


def test_events(kubelet: Kubelet) -> None:
    with subprocess.Popen(crisp(kubelet, "events"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        seen: list[str] = []

        def heard() -> bool:
            kubelet.pod().shell("exit 4")
            seen.append(os.read(process.stdout.fileno(), 65536).decode() if readable(process) else "")
            return all(words in "".join(seen) for words in ("Error (4)", "started   container", "created   pod"))

        wait_until(heard)
        process.terminate()


def readable(process: subprocess.Popen[str]) -> bool:
    return bool(select.select([process.stdout], [], [], 0)[0])
