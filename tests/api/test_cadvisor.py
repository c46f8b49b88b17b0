"""What the kubelet's cAdvisor asks and reads: containers and pods in the cgroup tree, their labels, their network."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kernel import cgroups
from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from proto import cadvisor_pb2 as wire
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet, Pod
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

LABELS = {"io.kubernetes.pod.name": "p", "io.kubernetes.pod.namespace": "n", "io.kubernetes.container.name": "c"}


class Cadvisor:
    """As cAdvisor asks containerd."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.path = f"{kubelet.daemon.directory}/containerd/containerd.sock"
        self._channel = grpc.insecure_channel(f"unix:{self.path}")

    def _ask(self, method: str, request: bytes) -> bytes:
        call = self._channel.unary_unary(f"/containerd.services.{method}")
        reply: bytes = call(request, timeout=60, wait_for_ready=True, metadata=[("containerd-namespace", "k8s.io")])
        return reply

    def begin(self) -> str:
        return wire.VersionResponse.FromString(self._ask("version.v1.Version/Version", b"")).version

    def container(self, name: str) -> wire.Container:
        request = wire.GetContainerRequest(id=name).SerializeToString()
        return wire.GetContainerResponse.FromString(self._ask("containers.v1.Containers/Get", request)).container

    def task(self, name: str) -> wire.Process:
        request = wire.GetTaskRequest(container_id=name).SerializeToString()
        return wire.GetTaskResponse.FromString(self._ask("tasks.v1.Tasks/Get", request)).process

    def unknown(self, name: str) -> None:
        for ask in (self.container, self.task):
            with pytest.raises(grpc.RpcError) as raised:
                ask(name)
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND, raised.value


@pytest.fixture
def kubelet(rootfs: Path) -> Iterator[Kubelet]:
    daemon = Daemon()
    text = daemon.config.read_text().replace(
        'cadvisor_socket = ""', f'cadvisor_socket = "{daemon.directory}/containerd/containerd.sock"'
    )
    daemon.config.write_text(text)
    daemon.start()
    try:
        assert daemon.client is not None
        request = admin.AddRootfsRequest(name="localhost/busybox:test", directory=str(rootfs))
        yield Kubelet(daemon, daemon.client.admin.AddRootfs(request).image_id)
    finally:
        daemon.destroy()


@pytest.fixture
def parent(kubelet: Kubelet) -> Iterator[str]:
    """A pod's cgroup, as a kubelet makes it before the pod, and removes it afterwards."""
    group = cgroups.detect().group(f"{kubelet.daemon.cgroup_parent.strip('/')}/kubepods/pod1")
    group.create()
    yield f"/{group.path}"
    assert group.remove()


def group_of(pod: Pod, parent: str) -> cgroups.Group:
    return cgroups.detect().group(f"{parent.strip('/')}/{pod.id}")


def inode_of(pod: Pod, parent: str) -> int:
    """Another one once it was made anew; 0 while there is none."""
    try:
        return os.stat(group_of(pod, parent).directory()).st_ino
    except FileNotFoundError:
        return 0


def pod_below(kubelet: Kubelet, parent: str, **namespaces: int) -> Pod:
    config = kubelet.pod_config(**namespaces)
    config.linux.cgroup_parent = parent
    return kubelet.pod(config)


def addresses(pid: int) -> str:
    """In the network of a process or thread, as the kernel tells everybody."""
    return Path(f"/proc/{pid}/net/fib_trie").read_text()


def threads(kubelet: Kubelet) -> list[str]:
    assert kubelet.daemon.process is not None
    tasks = Path(f"/proc/{kubelet.daemon.process.pid}/task")
    return sorted(os.readlink(task / "ns/net") for task in tasks.iterdir())


def test_containers_and_pods_are_known_by_their_groups(kubelet: Kubelet, parent: str) -> None:
    cadvisor = Cadvisor(kubelet)
    assert cadvisor.begin().startswith("crisp-")
    pod = pod_below(kubelet, parent)
    container = pod.run("/bin/sleep", "1000", config=cri.ContainerConfig(labels=LABELS))
    found = cadvisor.container(container.id)
    assert dict(found.labels) == {**LABELS, "io.cri-containerd.kind": "container"}
    assert found.image == container.status().image.image
    task = cadvisor.task(container.id)
    assert task.status == wire.RUNNING
    assert container.id in cgroups.of_process(task.pid, cgroups.detect())

    shown = cadvisor.container(pod.id)
    assert shown.labels["io.cri-containerd.kind"] == "sandbox"
    assert group_of(pod, parent).exists()
    (ip,) = [address for address in (pod.status().network.ip,) if address]
    assert ip in addresses(cadvisor.task(pod.id).pid)
    cadvisor.unknown("0" * 64)

    code = container.exec("/bin/sh", "-c", "kill -9 1; true").exit_code
    assert code in (0, 137)
    container.stop()
    container.wait()
    ended = cadvisor.task(container.id)
    assert (ended.status, ended.exit_status) == (wire.STOPPED, container.status().exit_code)


def test_nothing_is_made_for_nobody(kubelet: Kubelet, parent: str) -> None:
    """No cgroup and no thread before somebody asks; those of the pods that are there come then."""
    before = pod_below(kubelet, parent)
    alone = kubelet.pod()
    assert not group_of(before, parent).exists()
    cadvisor = Cadvisor(kubelet)
    cadvisor.begin()
    wait_until(lambda: group_of(before, parent).exists())
    assert len(set(threads(kubelet))) == 1, "of networks nobody asked yet"
    assert before.status().network.ip in addresses(cadvisor.task(before.id).pid)
    assert len(set(threads(kubelet))) == 2
    before.stop()
    assert len(set(threads(kubelet))) == 1
    assert not group_of(before, parent).exists()
    assert cadvisor.task(before.id).status == wire.STOPPED
    before.remove()
    cadvisor.unknown(before.id)
    alone.remove()


def test_a_restart_makes_groups_appear_anew(kubelet: Kubelet, parent: str) -> None:
    """Who has seen them knows a thread that is no more."""
    cadvisor = Cadvisor(kubelet)
    cadvisor.begin()
    pods = [pod_below(kubelet, parent), pod_below(kubelet, parent, pid=cri.POD)]
    container = pods[1].run("/bin/sleep", "1000")
    seen = [inode_of(pod, parent) for pod in pods]
    kubelet.daemon.kill()
    kubelet.daemon.start()
    for pod, before in zip(pods, seen, strict=True):
        wait_until(lambda pod=pod, before=before: inode_of(pod, parent) not in (0, before))
        assert pod.status().network.ip in addresses(cadvisor.task(pod.id).pid)
    pods.append(pod_below(kubelet, parent))
    assert group_of(pods[2], parent).exists(), "nobody needs to ask again"
    assert container.status().state == cri.CONTAINER_RUNNING
    for pod in pods:
        pod.remove()
        assert not group_of(pod, parent).exists()


def test_a_group_that_was_missed_appears_again(kubelet: Kubelet, parent: str) -> None:
    """cAdvisor had no connection when it looked; once it has asked, the group stays as it is."""
    cadvisor = Cadvisor(kubelet)
    cadvisor.begin()
    missed, asked = pod_below(kubelet, parent), pod_below(kubelet, parent)
    seen = inode_of(asked, parent)
    kubelet.daemon.kill()
    kubelet.daemon.start()
    wait_until(lambda: inode_of(asked, parent) not in (0, seen))
    cadvisor.task(asked.id)
    kept, before = inode_of(asked, parent), inode_of(missed, parent)
    wait_until(lambda: inode_of(missed, parent) not in (0, before, seen))
    assert inode_of(asked, parent) == kept


def test_the_nodes_network(kubelet: Kubelet, parent: str) -> None:
    config = kubelet.pod_config()
    config.linux.cgroup_parent = parent
    config.linux.security_context.namespace_options.network = cri.NODE
    pod = kubelet.pod(config)
    cadvisor = Cadvisor(kubelet)
    cadvisor.begin()
    assert os.readlink(f"/proc/{cadvisor.task(pod.id).pid}/ns/net") == os.readlink("/proc/self/ns/net")


def test_a_pod_with_users_of_its_own(kubelet: Kubelet, parent: str) -> None:
    """Its network namespace belongs to its user namespace."""
    kubelet.need_handler("crun", user_namespaces=True)
    Cadvisor(kubelet).begin()
    config = kubelet.pod_config()
    config.linux.cgroup_parent = parent
    options = config.linux.security_context.namespace_options.userns_options
    options.mode = cri.POD
    for ids in (options.uids, options.gids):
        ids.add(host_id=1 << 20, container_id=0, length=1 << 16)
    pod = kubelet.pod(config, handler="crun")
    assert pod.status().network.ip in addresses(Cadvisor(kubelet).task(pod.id).pid)
    pod.remove()
    assert len(set(threads(kubelet))) == 1


def test_a_parent_that_is_no_group_costs_figures_alone(kubelet: Kubelet, parent: str) -> None:
    Cadvisor(kubelet).begin()
    pod = pod_below(kubelet, f"{parent}/cgroup.procs")
    assert pod.status().state == cri.SANDBOX_READY
    assert "cAdvisor will not see the pod's network" in kubelet.daemon.log_path.read_text()
    pod.remove()


def test_a_parent_that_nobody_made_is_not_made(kubelet: Kubelet, parent: str) -> None:
    Cadvisor(kubelet).begin()
    missing = f"{parent}-missing"
    pod = pod_below(kubelet, missing)
    assert not cgroups.detect().group(missing.strip("/")).exists()
    pod.remove()


def test_the_socket_is_roots(kubelet: Kubelet) -> None:
    status = os.stat(Cadvisor(kubelet).path)
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o600)


def test_the_place_is_another_programs(kubelet: Kubelet) -> None:
    """containerd's: the daemon serves all the same, and leaves the socket alone."""
    path = Cadvisor(kubelet).path
    kubelet.daemon.stop()
    assert not os.path.exists(os.path.dirname(path)), "what it made, it has removed"
    os.mkdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        inode = os.lstat(path).st_ino
        kubelet.daemon.start()
        assert "cAdvisor cannot ask for pods" in kubelet.daemon.log_path.read_text()
        kubelet.pod().remove()
        kubelet.daemon.stop()
        assert os.lstat(path).st_ino == inode
    kubelet.daemon.start()
    assert Cadvisor(kubelet).begin()
    os.unlink(path)  # and one that comes later takes it
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        kubelet.daemon.stop()
        assert os.path.exists(path)
    os.unlink(path)
