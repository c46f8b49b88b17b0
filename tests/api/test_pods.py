"""RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus, ListPodSandbox."""

from __future__ import annotations

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from proto import api_pb2 as cri
from tests.harness.kubelet import Kubelet

pytestmark = pytest.mark.root

SANDBOX_READY, SANDBOX_NOTREADY = cri.SANDBOX_READY, cri.SANDBOX_NOTREADY


def test_life_of_a_sandbox(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    status = pod.status()
    assert status.state == SANDBOX_READY
    assert status.created_at > 0
    assert status.metadata == pod.config.metadata
    assert status.labels == pod.config.labels
    assert status.network.ip
    pod.stop()
    assert pod.status().state == SANDBOX_NOTREADY
    assert pod.status().network.ip == ""
    pod.stop()
    pod.remove()
    with pytest.raises(grpc.RpcError) as caught:
        pod.status()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    pod.stop()
    pod.remove()


def test_retry_with_the_same_attempt_gets_the_same_sandbox(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    request = cri.RunPodSandboxRequest(config=config)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(kubelet.runtime.RunPodSandbox, [request] * 8))
    assert len({reply.pod_sandbox_id for reply in replies}) == 1
    changed = cri.RunPodSandboxRequest(config=config)
    changed.config.labels["app"] = "other"
    with pytest.raises(grpc.RpcError, match="remove it, or ask for a higher attempt") as caught:
        kubelet.runtime.RunPodSandbox(changed)
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    changed.config.metadata.attempt = 1
    assert kubelet.runtime.RunPodSandbox(changed).pod_sandbox_id != replies[0].pod_sandbox_id


def test_filters(kubelet: Kubelet) -> None:
    first, second = kubelet.pod(), kubelet.pod()
    second.stop()

    def listed(**fields: object) -> set[str]:
        request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(**fields))
        return {item.id for item in kubelet.runtime.ListPodSandbox(request).items}

    assert listed() == {first.id, second.id}
    assert listed(id=first.id) == {first.id}
    assert listed(id=first.id[:12]) == {first.id}
    assert listed(state=cri.PodSandboxStateValue(state=SANDBOX_READY)) == {first.id}
    assert listed(state=cri.PodSandboxStateValue(state=SANDBOX_NOTREADY)) == {second.id}
    assert listed(label_selector={"app": second.config.labels["app"]}) == {second.id}
    assert listed(label_selector={"app": "x"}) == set()


def test_namespaces_of_its_own(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.run("/bin/sleep", "100")
    for kind in ("net", "ipc", "uts", "pid", "mnt"):
        assert container.sh(f"readlink /proc/self/ns/{kind}").strip() != os.readlink(f"/proc/self/ns/{kind}")
    other = pod.run("/bin/sleep", "100")
    for kind, shared in {"net": True, "ipc": True, "uts": True, "pid": False, "mnt": False}.items():
        same = container.sh(f"readlink /proc/self/ns/{kind}") == other.sh(f"readlink /proc/self/ns/{kind}")
        assert same is shared, kind


def test_host_namespaces(kubelet: Kubelet, daemon_netns: str) -> None:
    config = kubelet.pod_config(network=cri.NODE, ipc=cri.NODE, pid=cri.NODE)
    config.hostname = ""
    pod = kubelet.pod(config)
    assert pod.status().network.ip == ""
    container = pod.run("/bin/sleep", "100")
    assert container.sh("readlink /proc/self/ns/net").strip() == daemon_netns
    assert container.sh("readlink /proc/self/ns/ipc").strip() == os.readlink("/proc/self/ns/ipc")
    assert container.sh("readlink /proc/self/ns/pid").strip() == os.readlink("/proc/self/ns/pid")
    assert container.sh("hostname").strip() == socket.gethostname()


def test_shared_pid_namespace(kubelet: Kubelet) -> None:
    pod = kubelet.pod(pid=cri.POD)
    first = pod.run("/bin/sleep", "1111")
    second = pod.run("/bin/sleep", "2222")
    seen = second.sh("ps -o pid,args")
    assert "sleep 1111" in seen
    assert "sleep 2222" in seen
    assert first.sh("cat /proc/1/status | grep CapEff").split()[1] == "0" * 16
    # Nothing of the host is to be seen through the init's root.
    assert "etc" not in first.sh("ls /proc/1/root/ || true").split()
    # Its init reaps what nobody else does.
    first.sh("(sleep 0.05 & ) ; sleep 0.2")
    assert " Z " not in first.sh("ps -o pid,stat,args")
    first.stop()
    assert second.status().state == cri.CONTAINER_RUNNING


def test_hostname_dns_and_hosts(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.hostname = "web-0"
    config.dns_config.servers.append("10.0.0.10")
    config.dns_config.searches.extend(["tests.svc", "svc"])
    config.dns_config.options.append("ndots:5")
    container = kubelet.pod(config).run("/bin/sleep", "100")
    assert container.sh("hostname; cat /etc/hostname; echo $HOSTNAME").split() == ["web-0"] * 3
    resolv = container.sh("cat /etc/resolv.conf").splitlines()
    assert resolv == ["search tests.svc svc", "nameserver 10.0.0.10", "options ndots:5"]
    assert "web-0" in container.sh("cat /etc/hosts")


def test_sysctls(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.linux.sysctls["net.ipv4.ip_local_port_range"] = "2000 3000"
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    container = kubelet.pod(config).run("/bin/sleep", "100")
    assert container.sh("cat /proc/sys/net/ipv4/ip_local_port_range").split() == ["2000", "3000"]
    assert container.sh("cat /proc/sys/kernel/shm_rmid_forced").strip() == "1"
    assert container.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").strip() == "0"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vm.swappiness", "1", "does not belong to a pod"),
        ("net.ipv4.no_such_thing", "1", "net.ipv4.no_such_thing"),
        ("kernel.shm_rmid_forced", "rubbish", "kernel.shm_rmid_forced"),
    ],
)
def test_bad_sysctls(kubelet: Kubelet, name: str, value: str, message: str) -> None:
    config = kubelet.pod_config()
    config.linux.sysctls[name] = value
    with pytest.raises(grpc.RpcError, match=message):
        kubelet.pod(config)


def test_shm(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    first, second = pod.run("/bin/sleep", "100"), pod.run("/bin/sleep", "100")
    first.sh("echo shared > /dev/shm/x")
    assert second.sh("cat /dev/shm/x").strip() == "shared"
    assert "65536" in first.sh("df -k /dev/shm")


def test_unknown_handler(kubelet: Kubelet) -> None:
    with pytest.raises(grpc.RpcError, match="no runtime handler 'kata'") as caught:
        kubelet.pod(handler="kata")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_handlers(kubelet: Kubelet, handler: str) -> None:
    kubelet.need_handler(handler)
    pod = kubelet.pod(handler=handler)
    assert pod.status().runtime_handler == handler
    assert pod.shell("echo hi; exit 3").status().exit_code == 3


def test_metadata_is_required(kubelet: Kubelet) -> None:
    with pytest.raises(grpc.RpcError, match="lacks a name") as caught:
        kubelet.runtime.RunPodSandbox(cri.RunPodSandboxRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_creation_times_increase(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    times = []
    for attempt in range(3):
        config.metadata.attempt = attempt
        times.append(kubelet.pod(config).status().created_at)
    assert times == sorted(set(times))


def test_removal_takes_the_containers_with_it(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    running, ended = pod.run("/bin/sleep", "100"), pod.shell("exit 0")
    pod.remove()
    listed = {c.id for c in kubelet.runtime.ListContainers(cri.ListContainersRequest()).containers}
    assert not listed & {running.id, ended.id}


def test_verbose_status_is_what_scripts_read(kubelet: Kubelet) -> None:
    """`crictl inspectp`: the namespaces with their paths, and a process in them, though no sandbox has one of its own."""
    config = kubelet.pod_config()
    config.linux.sysctls["net.ipv4.ip_local_port_range"] = "2000 3000"
    pod = kubelet.pod(config)

    def info() -> dict[str, Any]:
        reply = kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True))
        found: dict[str, Any] = json.loads(reply.info["info"])
        return found

    spec = info()["runtimeSpec"]
    paths = {namespace["type"]: namespace["path"] for namespace in spec["linux"]["namespaces"]}
    assert set(paths) == {"network", "ipc", "uts"}
    assert spec["linux"]["sysctl"] == {"net.ipv4.ip_local_port_range": "2000 3000"}
    assert spec["hostname"] == config.hostname
    assert info()["pid"] == 0
    container = pod.run("/bin/sleep", "1000")
    pid = info()["pid"]
    for name, path in (("net", paths["network"]), ("ipc", paths["ipc"]), ("uts", paths["uts"])):
        assert os.stat(f"/proc/{pid}/ns/{name}").st_ino == os.stat(path).st_ino
    container.stop()
    assert info()["pid"] == 0


def test_a_pod_without_a_host_name_has_the_nodes(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.hostname = ""
    container = kubelet.pod(config).run("/bin/sleep", "1000")
    name = socket.gethostname()
    assert container.sh("hostname; cat /etc/hostname").split() == [name, name]
