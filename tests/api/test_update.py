"""UpdateContainerResources and UpdatePodSandboxResources; OOM of a child."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from kernel import cgroup_details
from proto import api_pb2 as cri
from tests.api.test_stats import group_of
from tests.harness.kubelet import Container, Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

MIB = 1 << 20


def update(container: Container, **fields: object) -> None:
    resources = cri.LinuxContainerResources(**fields)
    container.runtime.UpdateContainerResources(
        cri.UpdateContainerResourcesRequest(container_id=container.id, linux=resources)
    )


def limits(container: Container) -> cgroup_details.Limits:
    return cgroup_details.read_details(group_of(container)).limits


def sleeper(kubelet: Kubelet, **fields: object) -> Container:
    config = cri.ContainerConfig()
    config.linux.resources.MergeFrom(cri.LinuxContainerResources(**fields))
    return kubelet.pod().run("/bin/sleep", "1000", config=config)


@pytest.mark.controllers("memory")
def test_both_ways_and_across_a_restart(kubelet: Kubelet) -> None:
    container = sleeper(kubelet, memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=64 * MIB, cpu_shares=256)
    update(container, memory_limit_in_bytes=128 * MIB, cpu_quota=50_000, cpu_period=100_000)
    now = limits(container)
    assert (now.memory, now.cpu_quota) == (128 * MIB, 50_000)
    assert now.cpu_shares == pytest.approx(256, rel=0.1), "v2 keeps a weight, which is coarser"
    kubelet.daemon.kill()
    kubelet.daemon.start()
    shown = container.status().resources.linux
    assert (shown.memory_limit_in_bytes, shown.memory_swap_limit_in_bytes) == (128 * MIB, 128 * MIB)
    assert (shown.cpu_quota, shown.cpu_shares) == (50_000, 256)
    update(container, memory_limit_in_bytes=32 * MIB, cpu_quota=-1)
    now = limits(container)
    assert (now.memory, now.cpu_quota) == (32 * MIB, None)
    assert now.cpu_shares == pytest.approx(256, rel=0.1)


@pytest.mark.controllers("memory")
def test_a_memory_limit_alone_means_no_swap(kubelet: Kubelet) -> None:
    container = sleeper(kubelet, memory_limit_in_bytes=64 * MIB)
    directory = group_of(container).directory("memory")
    v1, v2 = Path(directory, "memory.memsw.limit_in_bytes"), Path(directory, "memory.swap.max")
    if not v1.exists() and not v2.exists():
        pytest.skip("the kernel does not account swap here")
    for limit in (64 * MIB, 128 * MIB, 32 * MIB):
        if limit != 64 * MIB:
            update(container, memory_limit_in_bytes=limit)
        assert limits(container).memory == limit
        assert (int(v1.read_text()) == limit) if v1.exists() else (v2.read_text() == "0\n")


@pytest.mark.controllers("memory")
def test_refused_values_leave_the_old_ones(kubelet: Kubelet) -> None:
    container = sleeper(kubelet, memory_limit_in_bytes=64 * MIB, cpu_shares=256)
    before, shown = limits(container), container.status().resources
    for refused, code in (
        (
            {"cpu_shares": 512, "cpuset_cpus": "4000"},
            grpc.StatusCode.FAILED_PRECONDITION,
        ),  # the kernel refuses it, on this host
        ({"cpu_shares": 512, "cpu_quota": 1}, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            update(container, **refused)
        assert caught.value.code() is code
        assert limits(container) == before
        assert container.status().resources == shown


@pytest.mark.controllers("memory")
def test_less_memory_than_is_used(kubelet: Kubelet) -> None:
    container = kubelet.pod().run(
        "/bin/sh", "-c", "x=$(head -c 33554432 /dev/zero | tr '\\0' a); echo ready; sleep 1000; true"
    )
    wait_until(lambda: "ready" in container.output())
    with pytest.raises(grpc.RpcError) as caught:
        update(container, memory_limit_in_bytes=16 * MIB)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "uses" in caught.value.details()
    assert limits(container).memory is None
    assert container.status().state == cri.CONTAINER_RUNNING


def test_oom_score(kubelet: Kubelet) -> None:
    container = sleeper(kubelet, oom_score_adj=500)
    update(container, oom_score_adj=700)
    [pid] = group_of(container).procs()
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "700"
    assert container.status().resources.linux.oom_score_adj == 700


def test_a_container_that_has_ended(kubelet: Kubelet) -> None:
    container = kubelet.pod().shell("true")
    with pytest.raises(grpc.RpcError) as caught:
        update(container, cpu_shares=2)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.controllers("memory")
def test_a_created_container(kubelet: Kubelet) -> None:
    container = kubelet.pod().create("/bin/sleep", "1000")
    update(container, memory_limit_in_bytes=64 * MIB)
    container.start()
    assert limits(container).memory == 64 * MIB


def test_pod(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    request = cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id)
    request.resources.memory_limit_in_bytes = 64 * MIB
    request.overhead.cpu_shares = 10
    kubelet.runtime.UpdatePodSandboxResources(request)
    kubelet.daemon.kill()
    kubelet.daemon.start()
    reply = kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True))
    info = json.loads(reply.info["info"])
    assert info["resources"] == {"memory_limit_in_bytes": str(64 * MIB)}
    assert info["overhead"] == {"cpu_shares": "10"}
    pod.stop()
    with pytest.raises(grpc.RpcError) as caught:
        kubelet.runtime.UpdatePodSandboxResources(request)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.controllers("memory")
def test_oom_of_a_child(kubelet: Kubelet) -> None:
    """The init lives on and ends by itself: the reason still says what became of its child."""
    config = cri.ContainerConfig()
    config.linux.resources.memory_limit_in_bytes = 32 * MIB
    hog = "sh -c 'x=a; while true; do x=$x$x; done'"
    status = kubelet.pod().shell(f"{hog}; echo child ended; exit 3", config).status()
    assert (status.reason, status.exit_code) == ("OOMKilled", 3)
