"""What does not die, does not answer, or is not there any more: it is said, and holds up nothing but itself."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kernel import mounts
from proto import api_pb2 as cri
from tests.harness.hung_mount import HungMount
from tests.harness.kubelet import Container, Kubelet
from tests.harness.shims import shim_pid
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[HungMount]:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    directory = tmp_path / "hung"
    directory.mkdir()
    with HungMount(directory) as mount:
        yield mount


def run_stuck(kubelet: Kubelet, hung: HungMount) -> Container:
    volume = cri.ContainerConfig(mounts=[cri.Mount(container_path="/volume", host_path=str(hung.path))])
    container = kubelet.pod().run("/bin/stat", "/volume/file", config=volume)
    assert hung.waiting.wait(30)
    return container


def failure(call: object, *arguments: object) -> tuple[grpc.StatusCode, str]:
    assert callable(call)
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    return caught.value.code(), caught.value.details()


def test_process_that_does_not_die(kubelet: Kubelet, hung: HungMount) -> None:
    """StopContainer says who hangs, and where; others go on, and once it dies everything is as ever."""
    container = run_stuck(kubelet, hung)
    removal = kubelet.runtime.RemovePodSandbox.future(cri.RemovePodSandboxRequest(pod_sandbox_id=container.pod.id))
    assert kubelet.pod().shell("exit 3").status().exit_code == 3
    assert removal.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "(stat, state D (disk sleep), in " in removal.details()
    assert container.status().state == cri.CONTAINER_RUNNING
    hung.release()
    container.stop()
    assert container.status().exit_code == 137
    container.pod.remove()


def test_process_that_does_not_die_when_nobody_supervises_it(kubelet: Kubelet, hung: HungMount) -> None:
    """The daemon starts and serves; the container is UNKNOWN until it is stopped with success."""
    container = run_stuck(kubelet, hung)
    kubelet.daemon.kill()
    os.kill(shim_pid(kubelet.daemon, container.id), signal.SIGKILL)
    kubelet.daemon.start()
    status = container.status()
    assert status.state == cri.CONTAINER_UNKNOWN
    assert "its shim was killed, and the container could not be ended" in status.message
    assert kubelet.pod().shell("exit 3").status().exit_code == 3
    code, message = failure(container.stop)
    assert (code, "state D" in message) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
    hung.release()
    container.stop()
    assert container.status().state == cri.CONTAINER_EXITED
    container.pod.remove()


def test_shim_that_hangs(kubelet: Kubelet) -> None:
    """Its container goes on. Probes of it fail and do not hold up the daemon; a stop ends it and its shim."""
    container = kubelet.pod().run("/bin/sleep", "100")
    shim = shim_pid(kubelet.daemon, container.id)
    os.kill(shim, signal.SIGSTOP)
    probes = [
        kubelet.runtime.ExecSync.future(cri.ExecSyncRequest(container_id=container.id, cmd=["/bin/true"], timeout=1))
        for _ in range(150)
    ]
    assert kubelet.pod().shell("exit 3").status().exit_code == 3
    codes = {probe.exception().code() for probe in probes}
    assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}
    container.stop()
    status = container.status()
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 255, "Error")
    container.remove()
    assert not os.path.exists(f"/proc/{shim}/fd/0")


def test_shim_that_hangs_while_the_daemon_starts(kubelet: Kubelet) -> None:
    """It is not taken for dead: when it goes on, so does everything."""
    container = kubelet.pod().run("/bin/sh", "-c", "while true; do echo tick; sleep 0.05; done")
    started = container.status().started_at
    kubelet.daemon.kill()
    shim = shim_pid(kubelet.daemon, container.id)
    os.kill(shim, signal.SIGSTOP)
    try:
        kubelet.daemon.start()
        assert container.status().state == cri.CONTAINER_RUNNING
    finally:
        os.kill(shim, signal.SIGCONT)
    wait_until(lambda: "shim answers" in kubelet.daemon.log_path.read_text())
    assert container.sh("echo alive") == "alive\n"
    assert container.status().started_at == started
    container.stop()
    assert container.status().exit_code == 137


@pytest.mark.parametrize("restarted", [False, True])
def test_directories_that_were_removed_behind_our_back(kubelet: Kubelet, restarted: bool) -> None:
    pod = kubelet.pod()
    containers = [pod.run("/bin/sleep", "100"), pod.create("/bin/true"), pod.shell("exit 3"), pod.run("/bin/sleep", "100")]
    daemon = kubelet.daemon
    for container in containers:
        shutil.rmtree(daemon.state / "containers" / container.id)
        shutil.rmtree(daemon.root / "containers" / container.id)
    sandbox = daemon.state / "sandboxes" / pod.id
    mounts.detach_all(str(sandbox))
    shutil.rmtree(sandbox)
    if restarted:
        daemon.kill()
        daemon.start()
    running = containers[0]
    begin = time.monotonic()
    running.stop(0)
    assert running.status().state == cri.CONTAINER_EXITED
    for container in containers:
        container.remove()
    pod.stop()
    pod.remove()
    assert time.monotonic() - begin < 60, "nothing ran into a limit"
