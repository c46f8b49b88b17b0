"""Creates, starts and commands that hang as they begin: they can be ended, with the OCI runtime and what it has started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from kernel import cgroups
from proto import api_pb2 as cri
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Container, Kubelet
from tests.harness.shims import shim_pid
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

# An OCI runtime that hangs before or after one verb, with a child that has left its session.
HANGING = """#!/bin/sh
[ "$1" = --version ] && exec echo "hanging version 1"
for argument; do
    case $argument in create|start|exec|delete) verb=$argument; break;; esac
done
[ "$verb $(cat "$0.hang" 2>/dev/null)" = "$verb $verb before" ] && { touch "$0.hangs"; setsid sleep 7777 & exec sleep 7777; }
[ "$verb $(cat "$0.hang" 2>/dev/null)" = "$verb $verb slowly" ] && sleep 0.5
runc "$@" || exit
[ "$verb $(cat "$0.hang" 2>/dev/null)" = "$verb $verb after" ] && { touch "$0.hangs"; setsid sleep 7777 & exec sleep 7777; }
exit 0
"""


class Trap:
    """Makes the handler `hanging` hang."""

    def __init__(self, kubelet: Kubelet, program: Path) -> None:
        self.kubelet = kubelet
        self._hang, self._hangs = Path(f"{program}.hang"), Path(f"{program}.hangs")

    def set(self, verb: str, when: str) -> None:
        self._hang.write_text(f"{verb} {when}\n")

    def wait(self) -> None:
        """Until it hangs; only once."""
        wait_until(self._hangs.exists)
        self._hang.unlink()
        self._hangs.unlink()

    @property
    def left(self) -> list[str]:
        """Its processes. They end with what they were started for."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "cmdline").read_bytes() == b"sleep\x007777\x00":
                    mine = os.readlink(entry / "ns/net") == os.readlink("/proc/self/ns/net")
                    found += [entry.name] if mine and (entry / "status").read_text().find("State:\tZ") < 0 else []
            except OSError:
                continue
        return found


@pytest.fixture
def trap(rootfs: Path) -> Iterator[Trap]:
    if not cgroups.detect().unified:
        pytest.skip("without a cgroup2 mount nothing can kill a tree of processes")
    daemon = Daemon()
    program = daemon.directory / "hanging"
    program.write_text(HANGING)
    program.chmod(0o755)
    daemon.config.write_text(daemon.config.read_text() + f'[runtimes.hanging]\npath = "{program}"\n')
    daemon.start()
    found = Trap(Kubelet.on(daemon, rootfs), program)
    yield found
    daemon.remove_all()
    left = daemon.leftovers()
    daemon.destroy()
    assert left == []
    assert found.left == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("end", ["StopPodSandbox", "RemovePodSandbox"])
def test_a_pod_whose_create_hangs_is_ended(trap: Trap, when: str, end: str) -> None:
    pod = trap.kubelet.pod(handler="hanging")
    trap.set("create", when)
    with ThreadPoolExecutor(1) as pool:
        creating = pool.submit(pod.create, "/bin/sleep", "1000")
        trap.wait()
        begin = time.monotonic()
        getattr(pod, "stop" if end == "StopPodSandbox" else "remove")()
        assert time.monotonic() - begin < 30  # and not the minutes that a create may take
        with pytest.raises(grpc.RpcError):
            creating.result()
    assert trap.left == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("end", ["StopContainer", "RemoveContainer", "StopPodSandbox"])
def test_a_container_whose_start_hangs_is_ended(trap: Trap, when: str, end: str) -> None:
    pod = trap.kubelet.pod(handler="hanging")
    container = pod.create("/bin/sleep", "1000")
    trap.set("start", when)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(container.start)
        trap.wait()
        begin = time.monotonic()
        {"StopContainer": lambda: container.stop(20), "RemoveContainer": container.remove, "StopPodSandbox": pod.stop}[end]()
        assert time.monotonic() - begin < 30
        with pytest.raises(grpc.RpcError):
            starting.result()
    assert trap.left == []
    if end != "RemoveContainer":
        assert container.status().state == cri.CONTAINER_EXITED


def test_a_kill_does_not_kill_the_delete_that_follows(trap: Trap) -> None:
    """The OCI runtime would remember the container for ever; the fixture looks for that."""
    pod = trap.kubelet.pod(handler="hanging")
    trap.set("delete", "slowly")
    containers = [pod.run("/bin/sh", "-c", "sleep 1000 & sleep 1000 & sleep 1000") for _ in range(6)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda container: container.stop(), containers * 2))
    for container in containers:
        assert container.status().exit_code == 137
        container.remove()


def test_a_delete_that_hangs_holds_up_nothing_for_ever(trap: Trap) -> None:
    pod = trap.kubelet.pod(handler="hanging")
    container = pod.run("/bin/sleep", "1000")
    trap.set("delete", "before")
    container.stop()
    trap.wait()
    container.remove()
    assert trap.left == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_command_that_times_out_as_it_is_started(trap: Trap, when: str) -> None:
    container = trap.kubelet.pod(handler="hanging").run("/bin/sleep", "1000")
    trap.set("exec", when)
    with pytest.raises(grpc.RpcError, match="timed out") as caught:
        container.exec("/bin/sleep", "7778", timeout=1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    trap.wait()
    wait_until(lambda: not trap.left and "7778" not in container.sh("ps -o args"))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_command_whose_daemon_dies_as_it_is_started(trap: Trap, when: str) -> None:
    container = trap.kubelet.pod(handler="hanging").run("/bin/sleep", "1000")
    trap.set("exec", when)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(container.exec, "/bin/sleep", "7778", timeout=60)
        trap.wait()
        trap.kubelet.daemon.kill()
        with pytest.raises((grpc.RpcError, ValueError)):
            running.result()
    wait_until(lambda: not trap.left)
    trap.kubelet.daemon.start()
    wait_until(lambda: "7778" not in container.sh("ps -o args"))


def test_commands_whose_daemon_dies_at_any_moment(kubelet: Kubelet) -> None:
    """Whatever the moment at which nobody wants it any more, nothing of a command is left."""
    container = kubelet.pod().run("/bin/sleep", "1000")
    for _ in range(3):
        calls = [
            kubelet.runtime.ExecSync.future(cri.ExecSyncRequest(container_id=container.id, cmd=["/bin/sleep", "7779"]))
            for _ in range(20)
        ]
        wait_until(lambda: "7779" in container.sh("ps -o args"))  # some of them have begun
        kubelet.daemon.kill()
        assert all(call.exception() is not None for call in calls)
        kubelet.daemon.start()
        wait_until(lambda: "7779" not in container.sh("ps -o args"))


# --- the init of a shared PID namespace ------------------------------------------------------------------------------


def shared(kubelet: Kubelet) -> tuple[Container, cri.PodSandboxConfig]:
    config = kubelet.pod_config(pid=cri.POD)
    return kubelet.pod(config).run("/bin/sleep", "1000"), config


def end_init(container: Container) -> None:
    """From inside; the command itself ends with it, maybe before anybody hears of its success."""
    with suppress(grpc.RpcError):
        container.exec("/bin/kill", "-TERM", "1")


@pytest.mark.parametrize("when", ["the daemon runs", "it is down", "it was restarted"])
def test_a_pod_whose_shared_init_is_killed_is_not_ready(kubelet: Kubelet, when: str) -> None:
    container, config = shared(kubelet)
    if when == "it was restarted":
        kubelet.daemon.kill()
        kubelet.daemon.start()
    if when == "it is down":
        pids = container.pod.kubelet.daemon.pause_pid(container.pod.id)
        kubelet.daemon.kill()
        os.kill(pids, signal.SIGKILL)
        kubelet.daemon.start()
    else:
        container.exec("/bin/kill", "-9", "1")  # which PID 1 does not feel
        end_init(container)
    wait_until(lambda: container.pod.status().state == cri.SANDBOX_NOTREADY)
    wait_until(lambda: container.status().state == cri.CONTAINER_EXITED)
    with pytest.raises(grpc.RpcError, match="not ready"):
        container.pod.create("/bin/true")
    config.metadata.attempt += 1
    again = kubelet.pod(config)
    assert again.shell("exit 3").status().exit_code == 3
    container.pod.stop()
    container.pod.remove()


def test_the_end_of_a_shared_init_is_told(kubelet: Kubelet) -> None:
    container, _ = shared(kubelet)
    stream = kubelet.runtime.GetContainerEvents(cri.GetEventsRequest(), timeout=60)
    end_init(container)
    for event in stream:
        if (event.container_id, event.container_event_type) == (container.pod.id, cri.CONTAINER_STOPPED_EVENT):
            assert event.pod_sandbox_status.state == cri.SANDBOX_NOTREADY
            break
    stream.cancel()


# --- the shim --------------------------------------------------------------------------------------------------------


def test_signals_to_a_shim_do_not_end_its_container(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(shim_pid(kubelet.daemon, container.id), number)
    assert container.sh("echo here") == "here\n"
    status = container.exec("/bin/grep", "-E", "^Sig(Ign|Cgt)", "/proc/self/status").stdout.split()
    # Signals 32 and 33 are the C library's own; make leaves them ignored, and nothing but a raw system call changes that.
    assert [int(mask, 16) & ~(0b11 << 31) for mask in status[1::2]] == [0, 0]
    container.stop()
    assert container.status().exit_code == 137


def test_a_shim_without_room_for_a_connection_goes_on(kubelet: Kubelet) -> None:
    import resource  # noqa: PLC0415

    container = kubelet.pod().run("/bin/sh", "-c", "while true; do sleep 0.1; echo line; done")
    pid = shim_pid(kubelet.daemon, container.id)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken, hard))
    for _ in range(3):
        with pytest.raises(grpc.RpcError):
            container.exec("/bin/true", timeout=1)
    assert container.status().state == cri.CONTAINER_RUNNING
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: container.exec("/bin/true").exit_code == 0)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken, hard))
    container.stop()
    assert container.status().exit_code == 137
