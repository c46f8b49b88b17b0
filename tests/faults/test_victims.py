"""Everybody but the daemon is killed: the fork server, shims, OCI runtimes, unpackers and CNI plugins.

At each step the daemon is stopped, the victim killed, and the daemon let go on. The call may fail; then everything is
consistent, a retry of the client succeeds, other containers have noticed nothing, and nothing is left over.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from kernel import mounts
from proto import api_pb2 as cri
from tests.harness import pure_v2
from tests.harness.daemon import Daemon
from tests.harness.host import CNI_PLUGINS, needs_cni_plugins
from tests.harness.kubelet import Container, Kubelet, Pod, some_limit
from tests.harness.shims import find_shim
from tests.harness.waiting import wait_until
from tests.images.image_builder import Layout, Member, busybox
from tests.images.registry_server import Registry

pytestmark = pytest.mark.root


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def fork_server(kubelet: Kubelet) -> list[int]:
    process = kubelet.daemon.process
    assert process is not None
    return [pid for pid in children(process.pid) if b"shim.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]


class Attempt(threading.Thread):
    """A call that goes on while the test interferes."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self._work = work
        self.error: grpc.RpcError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except grpc.RpcError as error:
            self.error = error

    def message(self) -> str:
        self.join(60)
        assert not self.is_alive(), "the call does not return"
        return "" if self.error is None else self.error.details()


# --- the fork server and shims ---------------------------------------------------------------------------------------


@dataclass
class Victim:
    """A pod as a kubelet makes it, and makes it again."""

    kubelet: Kubelet
    config: cri.PodSandboxConfig
    others: set[str]
    """Containers that are none of its own."""

    def whole_life(self) -> None:
        pod = self.kubelet.pod(self.config)
        wanted = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"))
        container = pod.run("/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.05; done", config=wanted)
        container.update(**some_limit(512))
        assert container.sh("echo hello") == "hello\n"
        container.stop(5)
        container.remove()
        pod.stop()
        pod.remove()

    def container_id(self) -> str:
        """Of its container's bundle: it may be made and listed by nobody yet."""
        (found,) = set(os.listdir(self.kubelet.daemon.state / "containers")) - self.others
        return found

    def forget(self) -> None:
        """As a kubelet does before it tries with a higher attempt."""
        for item in self.kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
            if item.metadata.name == self.config.metadata.name:
                Pod(self.kubelet, item.id, self.config).stop()
                Pod(self.kubelet, item.id, self.config).remove()


def at(kubelet: Kubelet, failpoint: str, kill: Callable[[Victim], None]) -> str:
    """Kill at the failpoint of a pod's life; what the client is told. Then the life is lived once more."""
    witness = kubelet.pod().run("/bin/sh", "-c", "while true; do echo tick; sleep 0.02; done")
    kubelet.daemon.stop()
    kubelet.daemon.start(f"{failpoint}:stop")
    process = kubelet.daemon.process
    assert process is not None
    others = set(os.listdir(kubelet.daemon.state / "containers"))
    victim = Victim(kubelet, kubelet.pod_config("victim"), others)
    attempt = Attempt(victim.whole_life)
    wait_until(lambda: is_stopped(process.pid))
    try:
        kill(victim)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    message = attempt.message()
    victim.forget()
    victim.whole_life()
    assert set(os.listdir(kubelet.daemon.state / "containers")) == others
    assert witness.status().state == cri.CONTAINER_RUNNING
    lines = len(witness.log_lines())
    wait_until(lambda: len(witness.log_lines()) > lines)
    return message


@pytest.mark.parametrize("failpoint", ["sandbox.recorded", "sandbox.network", "container.recorded", "container.made"])
def test_fork_server_killed(kubelet: Kubelet, failpoint: str) -> None:
    """The next job starts another; who does not need it does not notice."""

    def kill(_victim: Victim) -> None:
        (server,) = fork_server(kubelet)
        os.kill(server, signal.SIGKILL)

    assert at(kubelet, failpoint, kill) == ""


@pytest.mark.parametrize(
    "failpoint",
    ["container.shim", "container.made", "container.started", "container.updated", "exec.started", "container.stopping"],
)
def test_shim_killed(kubelet: Kubelet, failpoint: str) -> None:
    """Its container ends with a reason; the call that was under way says so, or has nothing to say any more."""

    def kill(victim: Victim) -> None:
        shim = find_shim(kubelet.daemon, victim.container_id())
        assert shim or failpoint == "container.stopping", "there it may have left by itself"
        if shim:
            os.kill(shim, signal.SIGKILL)

    message = at(kubelet, failpoint, kill)
    assert "bug" not in message
    if failpoint == "container.stopping":
        assert message == "", "it was to be stopped anyway"


# --- OCI runtimes ----------------------------------------------------------------------------------------------------

FLAKY = """#!/bin/sh
[ "$1" = --version ] && exec echo "flaky version 1"
verb=
for argument in "$@"; do
    case $argument in create|start|update|exec|delete) verb=$argument; break;; esac
done
if [ -e {control} ] && read wanted when < {control} && [ "$verb" = "$wanted" ]; then
    rm {control}
    [ $when = before ] && kill -9 $$
    {runtime} "$@"
    kill -9 $$
fi
exec {runtime} "$@"
"""


@pytest.fixture(scope="module")
def flaky(rootfs: Path) -> Iterator[tuple[Kubelet, Path]]:
    """A daemon whose runtime is killed once where the control file says."""
    daemon = Daemon()
    control, program = daemon.directory / "control", daemon.directory / "flaky"
    program.write_text(FLAKY.format(control=control, runtime=pure_v2.usable_runtime()))
    program.chmod(0o755)
    daemon.config.write_text(daemon.config.read_text() + f'[runtimes.flaky]\npath = "{program}"\n')
    daemon.start()
    yield Kubelet.on(daemon, rootfs), control
    daemon.destroy()


def test_oci_runtime_killed_while_it_is_mounted(flaky: tuple[Kubelet, Path]) -> None:
    """runc binds its program to a file beside its state, to execute that, and unmounts it at once: unless it is killed."""
    kubelet, _ = flaky
    pod = kubelet.pod(handler="flaky")
    container = pod.run("/bin/sleep", "100")
    mounted = kubelet.daemon.state / "runtimes/flaky" / container.id / "runc.abcdef"
    mounted.touch()
    mounts.bind("/bin/true", str(mounted), readonly=True)
    container.stop(0)
    container.remove()
    assert not mounted.parent.exists()
    pod.remove()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("verb", ["create", "start", "update", "exec", "delete"])
def test_oci_runtime_killed(flaky: tuple[Kubelet, Path], verb: str, when: str) -> None:
    kubelet, control = flaky
    pod = kubelet.pod(handler="flaky")
    wanted = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"))
    steps: dict[str, Callable[[Container], object]] = {
        "start": lambda c: c.start(),
        "update": lambda c: c.update(**some_limit(700)),
        "exec": lambda c: c.exec("/bin/sleep", "30" if control.exists() else "0"),
    }

    def strike() -> None:
        control.write_text(f"{verb} {when}\n")

    if verb == "create":
        strike()
        with pytest.raises(grpc.RpcError, match=r"flaky"):
            pod.create("/bin/sleep", "100", config=wanted)
    container = pod.create("/bin/sleep", "100", config=wanted)
    for name, step in steps.items():
        if name == verb:
            strike()
            with pytest.raises(grpc.RpcError) as caught:
                step(container)
            assert "bug" not in caught.value.details()
            if verb == "start":
                status = container.wait()
                assert (status.state, status.reason, status.exit_code) == (cri.CONTAINER_EXITED, "StartError", 128)
                break
        step(container)
    if verb == "exec":
        assert "sleep 30" not in container.sh("ps -o args")
    if verb == "delete":
        strike()
    container.stop()
    container.remove()
    assert not control.exists(), "it was killed"
    pod.remove()
    assert kubelet.daemon.leftovers() == []


# --- unpackers -------------------------------------------------------------------------------------------------------


def test_unpacker_killed(kubelet: Kubelet, tmp_path: Path) -> None:
    """Whatever the moment: the pull fails or succeeds, the next one succeeds, and the layers are right."""
    registry = Registry(tmp_path / "registry")
    daemon = kubelet.daemon
    try:
        layout = Layout(tmp_path / "layout")
        hit = 0
        for number in range(4):
            tag = f"{registry.host}/unpack/app:{number}"
            layout.image(tag, [busybox(*(Member(f"d{n}", os.urandom(20_000)) for n in range(400)))])
            layout.push(tag, tag)
            request = cri.PullImageRequest(image=cri.ImageSpec(image=tag))
            attempt = Attempt(lambda request=request: kubelet.images.PullImage(request))  # type: ignore[misc]
            victims = workers(daemon)
            while attempt.is_alive() and not victims:
                victims = workers(daemon)
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            hit += bool(victims)
            assert "bug" not in attempt.message()
            image = kubelet.images.PullImage(request).image_ref
            config = cri.ContainerConfig(image=cri.ImageSpec(image=image))
            assert kubelet.pod().run("/bin/cat", "/d399", config=config).wait().exit_code == 0
        assert hit, "some were caught at work"
        layers = daemon.root / "layers"
        wait_until(lambda: not [path for path in layers.iterdir() if path.name.startswith(("new-", "old-"))])
        assert list((daemon.root / "ingest").iterdir()) == []
    finally:
        registry.close()


def workers(daemon: Daemon) -> list[int]:
    """The unpackers that run now, their server first."""
    assert daemon.process is not None
    found = []
    for pid in children(daemon.process.pid):
        try:
            if b"imagesvc.worker.main" in Path(f"/proc/{pid}/cmdline").read_bytes() and (jobs := children(pid)):
                found += [pid, *jobs]
        except OSError:
            continue
    return found


# --- CNI plugins -----------------------------------------------------------------------------------------------------

DYING_IPAM = """#!/bin/sh
if [ -e {control} ] && read wanted when < {control} && [ "$CNI_COMMAND" = "$wanted" ]; then
    rm {control}
    [ $when = after ] && /usr/lib/cni/host-local > /dev/null
    kill -9 $$
fi
exec /usr/lib/cni/host-local
"""


@pytest.fixture(scope="module")
def cni() -> Iterator[tuple[Kubelet, Path]]:
    """A daemon whose address plugin is killed once where the control file says."""
    daemon = Daemon()
    folder = daemon.directory
    for name in ("bin", "net.d"):
        (folder / name).mkdir()
    program, control = folder / "bin/dying", folder / "control"
    program.write_text(DYING_IPAM.format(control=control))
    program.chmod(0o755)
    ipam = {"type": "dying", "dataDir": str(folder / "ipam"), "ranges": [[{"subnet": "10.87.0.0/16"}]]}
    plugin = {"type": "bridge", "bridge": f"cv{os.getpid()}", "isGateway": True, "ipam": ipam}
    conflist = {"cniVersion": "1.0.0", "name": "dying", "plugins": [plugin]}
    (folder / "net.d/10-dying.conflist").write_text(json.dumps(conflist))
    dirs = f'bin_dirs = ["{folder}/bin", "{CNI_PLUGINS}"]\n'
    text = daemon.config.read_text().replace("[network.cni]\n", f'[network]\nmode = "cni"\n[network.cni]\n{dirs}')
    daemon.config.write_text(text)
    daemon.start()
    kubelet = Kubelet(daemon, "")
    kubelet.pod()  # the plugin cannot give a MAC to a bridge that has never had a port
    yield kubelet, control
    daemon.destroy()


@needs_cni_plugins
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_cni_plugin_killed(cni: tuple[Kubelet, Path], verb: str, when: str) -> None:
    kubelet, control = cni
    addresses = kubelet.daemon.directory / "ipam/dying"
    config = kubelet.pod_config()
    if verb == "ADD":
        control.write_text(f"{verb} {when}\n")
        with pytest.raises(grpc.RpcError, match=r"signal|kill"):
            kubelet.pod(config)
        assert len(kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items) == 1
    pod = kubelet.pod(config)
    if verb == "DEL":
        control.write_text(f"{verb} {when}\n")
        try:
            pod.stop()
        except grpc.RpcError as error:
            assert "bug" not in str(error.details())
    pod.stop()
    pod.remove()
    assert not control.exists(), "it was killed"
    wait_until(lambda: len([name for name in os.listdir(addresses) if name[0].isdigit()]) == 1)


def test_a_pod_whose_init_was_killed_keeps_its_network_until_it_is_stopped(kubelet: Kubelet) -> None:
    """It must be replaced, but containers with PID namespaces of their own go on, over a restart of the daemon too."""
    pod = kubelet.pod(pid=cri.POD)
    ends = pod.run("/bin/sleep", "1000")
    pod.config.linux.security_context.namespace_options.pid = cri.CONTAINER
    stays = pod.run("/bin/sleep", "1000")
    os.kill(kubelet.daemon.pause_pid(pod.id), signal.SIGKILL)
    ends.wait()
    wait_until(lambda: pod.status().state == cri.SANDBOX_NOTREADY)
    address, lease = pod.status().network.ip, kubelet.daemon.state / "sandboxes" / pod.id / "lease.json"
    assert address
    kubelet.daemon.stop()
    kubelet.daemon.start()
    assert stays.status().state == cri.CONTAINER_RUNNING
    assert lease.exists()
    assert "LOWER_UP" in stays.sh("ip link show eth0")
    assert pod.status().network.ip == address
    pod.stop()
    wait_until(lambda: not lease.exists())
