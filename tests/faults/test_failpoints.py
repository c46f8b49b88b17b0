"""The daemon is killed at every named step of every operation; the next one brings records and kernel together.

After each: a retry of the client succeeds, running containers were never disturbed, and nothing is left over.
"""

from __future__ import annotations

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from kernel import cgroups, mounts
from kernel.failpoints import NAMES
from proto import api_pb2 as cri
from tests.harness.kubelet import Container, Kubelet, some_limit
from tests.harness.shims import pids_called, shim_pid
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root


def rearm(kubelet: Kubelet, failpoint: str) -> None:
    kubelet.daemon.stop()
    kubelet.daemon.start(failpoint)


def crashed(kubelet: Kubelet) -> None:
    assert kubelet.daemon.wait_death() == -signal.SIGKILL
    kubelet.daemon.start()


@pytest.mark.parametrize("failpoint", sorted(name for name in NAMES if not name.startswith(("image.", "network."))))
def test_crash_and_retry(kubelet: Kubelet, failpoint: str) -> None:
    witness = kubelet.pod().run("/bin/sh", "-c", "n=0; while true; do n=$((n+1)); echo $n; sleep 0.02; done")
    started = witness.status().started_at
    config = kubelet.pod_config("victim")
    rearm(kubelet, failpoint)
    with pytest.raises(grpc.RpcError):
        whole_life(kubelet, config)
    crashed(kubelet)
    status = witness.status()
    assert (status.state, status.started_at) == (cri.CONTAINER_RUNNING, started)
    before = len(numbers(witness))
    consistent(kubelet)
    # The client comes back with a higher attempt where the old sandbox still stands, or with the same one.
    config.metadata.attempt += any(
        s.metadata.name == "victim" for s in kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    )
    whole_life(kubelet, config)
    assert len(numbers(witness)) > before


def test_crash_behind_the_answer_to_a_stop(kubelet: Kubelet) -> None:
    """The pod's links go after StopPodSandbox has been answered: the next daemon finds their lease, and gives it back."""
    rearm(kubelet, "network.unlinked")
    pod = kubelet.pod()
    with suppress(grpc.RpcError):  # it was not answered yet
        pod.stop()
    assert kubelet.daemon.wait_death() == -signal.SIGKILL
    lease = kubelet.daemon.state / "sandboxes" / pod.id / "lease.json"
    assert lease.exists()
    kubelet.daemon.start()
    pod.stop()
    wait_until(lambda: not lease.exists())
    pod.remove()


def numbers(witness: Container) -> list[int]:
    """The lines of its log, of which none is lost or comes twice."""
    found = [int(line) for line in witness.output().splitlines()]
    assert found == list(range(1, len(found) + 1))
    return found


def whole_life(kubelet: Kubelet, config: cri.PodSandboxConfig) -> None:
    """Every operation that has a failpoint."""
    pod = kubelet.pod(config)
    kubelet.runtime.UpdatePodSandboxResources(cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id))
    container = pod.run_trap("exit 0", "TERM")
    container.update(**some_limit(512))
    assert container.sh("echo hello") == "hello\n"
    container.stop(30)
    assert container.status().exit_code == 0
    container.remove()
    pod.stop()
    pod.remove()


def consistent(kubelet: Kubelet) -> None:
    """Whatever is listed can be asked for, stopped and removed, and says the truth about itself."""
    runtime = kubelet.runtime
    for item in runtime.ListContainers(cri.ListContainersRequest()).containers:
        status = runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=item.id)).status
        assert status.state == item.state
        if status.state == cri.CONTAINER_RUNNING:
            reply = runtime.ExecSync(cri.ExecSyncRequest(container_id=item.id, cmd=["/bin/true"], timeout=10))
            assert reply.exit_code == 0
    for item in runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
        assert runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=item.id)).status.id == item.id
        if item.metadata.name == "victim":
            runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=item.id))
            runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=item.id))


def test_exit_while_there_is_no_daemon(kubelet: Kubelet, tmp_path: Path) -> None:
    volume = cri.ContainerConfig(mounts=[cri.Mount(container_path="/volume", host_path=str(tmp_path))])
    script = "while [ ! -e /volume/go ]; do sleep 0.02; done; echo last words; exit 6"
    container = kubelet.pod().run("/bin/sh", "-c", script, config=volume)
    kubelet.daemon.kill()
    (tmp_path / "go").touch()
    kubelet.daemon.start()
    status = container.wait()
    assert (status.exit_code, status.reason) == (6, "Error")
    assert container.output() == "last words\n"


def test_shim_killed(kubelet: Kubelet) -> None:
    """Nobody else could tell the exit code: the container ends with it, at once and with a reason."""
    container = kubelet.pod().run("/bin/sleep", "100")
    kill_shim(kubelet, container)
    status = container.wait()
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 255, "Error")
    assert "shim was killed" in status.message


def test_shim_killed_while_there_is_no_daemon(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "100")
    kubelet.daemon.kill()
    kill_shim(kubelet, container)
    kubelet.daemon.start()
    status = container.wait()
    assert (status.exit_code, status.reason) == (255, "Error")


def kill_shim(kubelet: Kubelet, container: Container) -> None:
    os.kill(shim_pid(kubelet.daemon, container.id), signal.SIGKILL)


def test_fork_server_killed(kubelet: Kubelet) -> None:
    """The next job starts another."""
    assert kubelet.daemon.process is not None
    pid = kubelet.daemon.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    servers = [c for c in children if b"shim.forkserver" in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert servers
    for server in servers:
        os.kill(int(server), signal.SIGKILL)
    assert kubelet.pod().shell("exit 2").status().exit_code == 2


def test_spare_shims_go_with_a_daemon_that_is_killed(kubelet: Kubelet) -> None:
    group = cgroups.detect().group(f"{kubelet.daemon.cgroup_parent}/shims")

    def spares() -> set[int]:
        return group.procs().intersection(pids_called("crisp-spare"))

    container = kubelet.pod().run("/bin/sleep", "1000")
    wait_until(spares)
    kubelet.daemon.kill()
    wait_until(lambda: not spares())
    kubelet.daemon.start()
    assert container.status().state == cri.CONTAINER_RUNNING


def test_reboot(kubelet: Kubelet) -> None:
    """All of /run is gone: sandboxes are stopped, containers exited, and both can be removed."""
    pod = kubelet.pod()
    container, other = pod.run("/bin/sleep", "100"), pod.run("/bin/sleep", "100")
    ended = pod.shell("exit 3")
    daemon = kubelet.daemon
    log = Path(container.status().log_path)
    daemon.kill()
    kill_shim(kubelet, other)
    kill_shim(kubelet, container)
    group = cgroups.detect().group(daemon.cgroup_parent.strip("/"))
    while not group.kill():
        pass
    mounts.detach_all(str(daemon.state))
    shutil.rmtree(daemon.state)
    torso = "2026-01-02T03:04:05.000000006Z stdout F hal"
    log.write_text(torso)
    told = len(daemon.log_path.read_text())
    daemon.start()
    assert log.read_text() == torso + "\n"
    lines = daemon.log_path.read_text()[told:].splitlines()
    assert sum("containers ended with a reboot of the node" in line for line in lines) == 1
    assert not [line for line in lines if '"level": "error"' in line or '"level":"error"' in line]
    assert pod.status().state == cri.SANDBOX_NOTREADY
    status = container.status()
    assert (status.state, status.reason) == (cri.CONTAINER_EXITED, "Error")
    assert "rebooted" in status.message
    assert ended.status().exit_code == 3
    again = kubelet.pod().shell("exit 4")
    assert again.status().exit_code == 4


def test_restart_keeps_everything(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    running = pod.run("/bin/sleep", "100")
    created = pod.create("/bin/echo", "started later")
    ended = pod.shell("exit 3")
    before = {c.id: c.status() for c in (running, created, ended)}
    sandbox = pod.status()
    for end in (kubelet.daemon.kill, kubelet.daemon.stop):
        end()
        kubelet.daemon.start()
        assert pod.status() == sandbox
        assert {c.id: c.status() for c in (running, created, ended)} == before
    created.start()
    assert created.wait().exit_code == 0
    assert created.output() == "started later\n"
    assert running.sh("echo alive") == "alive\n"


def test_a_stop_beside_a_removal_brings_nothing_back(kubelet: Kubelet) -> None:
    """Who has waited for the removal finds nothing to stop: a record of it would be a pod of the next daemon."""
    pods = [kubelet.pod() for _ in range(6)]
    with ThreadPoolExecutor(4 * len(pods)) as pool:
        done = [pool.submit(work) for pod in pods for work in (pod.remove, pod.stop, pod.stop, pod.stop)]
    for one in done:
        one.result()
    kubelet.daemon.kill()
    kubelet.daemon.start()
    listed = {item.id for item in kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items}
    assert not listed & {pod.id for pod in pods}
