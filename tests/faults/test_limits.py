"""A thousand descriptors only: what does not fit is refused, nothing dies, and afterwards everything works."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from kernel import cgroups
from proto import api_pb2 as cri
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Container, Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

DESCRIPTORS = 1000
CONTAINERS = 24
CONNECTIONS = 1200
BUSY = 60
"""Execs at once: each takes several descriptors of the daemon's."""


@pytest.fixture
def limited(rootfs: Path) -> Iterator[Kubelet]:
    daemon = Daemon()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    daemon.start()
    assert daemon.process is not None
    assert daemon.client is not None
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield Kubelet.on(daemon, rootfs)
    daemon.remove_all()
    wait_until(lambda: daemon.leftovers() == [])  # what could not be undone is undone later
    daemon.destroy()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_descriptors(limited: Kubelet) -> None:
    kubelet = limited
    process = kubelet.daemon.process
    assert process is not None
    pods = [kubelet.pod() for _ in range(CONTAINERS)]
    containers = [pod.run("/bin/sh", "-c", "while true; do echo tick; sleep 0.2; done") for pod in pods]
    idle = open_descriptors(process.pid)

    codes: set[grpc.StatusCode] = set()
    with ExitStack() as crowd:
        for _ in range(CONNECTIONS):
            crowd.enter_context(connect(kubelet.daemon.socket))
        for _ in range(3):
            codes |= busy(kubelet, containers[0])
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}

    assert process.poll() is None
    wait_until(lambda: open_descriptors(process.pid) <= idle + 60)
    for container in containers:
        assert container.status().state == cri.CONTAINER_RUNNING
        assert container.sh("echo alive") == "alive\n"
    assert kubelet.pod().shell("exit 3").status().exit_code == 3
    for container in containers:
        container.stop()
        assert container.status().exit_code == 137


@pytest.mark.controllers("pids")
def test_no_more_threads(limited: Kubelet) -> None:
    """As below systemd's TasksMax: that is the host's need, and no bug."""
    process = limited.daemon.process
    assert process is not None
    for _ in range(4):  # they need no new ones any more
        limited.pod(network=cri.NODE)
    hierarchies = cgroups.detect()
    root = Path(hierarchies.controllers["pids"])
    home = root / cgroups.of_process(process.pid, hierarchies)
    group = root / f"crisp-test-{os.getpid()}-tasks"
    group.mkdir()
    (group / "cgroup.procs").write_text(str(process.pid))
    try:
        (group / "pids.max").write_text((group / "pids.current").read_text())
        with pytest.raises(grpc.RpcError) as caught:
            limited.pod(network=cri.NODE)
        assert (caught.value.code(), caught.value.details()) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "the kernel gives no more threads",
        )
    finally:
        (home / "cgroup.procs").write_text(str(process.pid))
        group.rmdir()
    assert limited.pod().shell("exit 3").status().exit_code == 3


def busy(kubelet: Kubelet, container: Container) -> set[grpc.StatusCode]:
    """Many execs and a new pod at once; how they ended."""
    command = cri.ExecSyncRequest(container_id=container.id, cmd=["/bin/sleep", "0.2"], timeout=30)
    calls = [kubelet.runtime.ExecSync.future(command) for _ in range(BUSY)]
    calls.append(kubelet.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=kubelet.pod_config())))
    codes = {call.code() for call in calls}
    details = [call.details() for call in calls if call.code() is not grpc.StatusCode.OK]
    assert not [text for text in details if "bug" in text]
    return codes


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def connect(path: str) -> socket.socket:
    """A client that says nothing; one that is not let in waits in the queue."""
    channel = socket.socket(socket.AF_UNIX)
    channel.settimeout(2)
    try:
        channel.connect(path)
    except OSError:
        return channel
    return channel
