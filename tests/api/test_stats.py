"""ContainerStats, PodSandboxStats and their lists: figures beside the kernel's own, under load."""

from __future__ import annotations

import json
import os
from pathlib import Path

import grpc
import pytest

from kernel import cgroup_stats, cgroups
from kernel.cgroups import Mode
from proto import api_pb2 as cri
from tests.harness.kubelet import Container, Kubelet, Pod
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

MIB = 1 << 20
BURN = "while true; do :; done"


def stats(container: Container) -> cri.ContainerStats:
    return container.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container.id)).stats


def pod_stats(pod: Pod) -> cri.PodSandboxStats:
    return pod.kubelet.runtime.PodSandboxStats(cri.PodSandboxStatsRequest(pod_sandbox_id=pod.id)).stats


def listed(kubelet: Kubelet, **criteria: object) -> set[str]:
    request = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter(**criteria))
    return {s.attributes.id for s in kubelet.runtime.ListContainerStats(request).stats}


def group_of(container: Container) -> cgroups.Group:
    reply = container.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container.id, verbose=True))
    return cgroups.detect().group(json.loads(reply.info["info"])["cgroup"])


def test_cpu_of_a_burner(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sh", "-c", BURN)
    first = stats(container)
    assert not first.cpu.HasField("usage_nano_cores"), "a rate needs two looks"
    group = group_of(container)
    wait_until(lambda: (cgroup_stats.read_usage(group).cpu or 0) > 300_000_000)
    before = cgroup_stats.read_usage(group).cpu or 0
    second = stats(container)
    after = cgroup_stats.read_usage(group).cpu or 0
    assert before <= second.cpu.usage_core_nano_seconds.value <= after
    assert second.cpu.timestamp > first.cpu.timestamp
    used = second.cpu.usage_core_nano_seconds.value - first.cpu.usage_core_nano_seconds.value
    elapsed = second.cpu.timestamp - first.cpu.timestamp
    assert second.cpu.usage_nano_cores.value == pytest.approx(used * 1_000_000_000 / elapsed, rel=0.2)


@pytest.mark.controllers("memory")
def test_memory_of_a_hog(kubelet: Kubelet) -> None:
    config = cri.ContainerConfig()
    config.linux.resources.memory_limit_in_bytes = 256 * MIB
    container = kubelet.pod().run(
        "/bin/sh", "-c", "x=$(head -c 33554432 /dev/zero | tr '\\0' a); echo ready; sleep 1000; true", config=config
    )
    wait_until(lambda: "ready" in container.output())
    memory = stats(container).memory
    seen = cgroup_stats.read_usage(group_of(container)).memory
    assert seen is not None
    assert memory.rss_bytes.value > 32 * MIB
    assert memory.rss_bytes.value == pytest.approx(seen.rss, rel=0.05)
    assert memory.usage_bytes.value == pytest.approx(seen.usage, rel=0.05)
    assert memory.working_set_bytes.value <= memory.usage_bytes.value
    assert memory.available_bytes.value == 256 * MIB - memory.working_set_bytes.value
    assert memory.page_faults.value > 32 * MIB // (2 * MIB), "a huge page is one fault"
    assert stats(container).swap.HasField("swap_usage_bytes")


@pytest.mark.controllers("cpuset")
def test_pressure_of_two_burners_on_one_processor(kubelet: Kubelet) -> None:
    config = cri.ContainerConfig()
    config.linux.resources.cpuset_cpus = "0"
    container = kubelet.pod().run("/bin/sh", "-c", f"({BURN}) & {BURN}", config=config)
    if not stats(container).cpu.HasField("psi"):
        pytest.skip("the kernel accounts no pressure for this container")
    wait_until(lambda: stats(container).cpu.psi.Some.Total > 100_000)
    assert stats(container).memory.HasField("psi")
    assert stats(container).io.HasField("psi")


def test_writable_layer_of_a_writer(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.create("/bin/sh", "-c", "head -c 5000000 /dev/zero > /file; mkdir /many; touch /many/1 /many/2")
    before = stats(container).writable_layer
    assert before.timestamp > 0
    container.start()
    container.wait()
    wait_until(lambda: stats(container).writable_layer.used_bytes.value > 5_000_000)
    after = stats(container)
    assert after.writable_layer.inodes_used.value == before.inodes_used.value + 4
    assert not after.HasField("cpu"), "what has ended uses no CPU"
    file_systems = kubelet.images.ImageFsInfo(cri.ImageFsInfoRequest()).container_filesystems
    assert after.writable_layer.fs_id.mountpoint == file_systems[0].fs_id.mountpoint


def test_network_of_a_sender(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.run("/bin/sleep", "1000")
    before = pod_stats(pod).linux.network.default_interface
    assert before.name == "eth0"
    gateway = container.sh("ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'").strip()
    container.sh(f"ping -q -A -c 400 -s 1400 {gateway}")
    after = pod_stats(pod).linux.network.default_interface
    seen = int(container.sh("cat /sys/class/net/eth0/statistics/tx_bytes"))
    assert before.tx_bytes.value < after.tx_bytes.value <= seen
    assert after.tx_bytes.value - before.tx_bytes.value > 500_000


def test_pod_is_the_sum(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    burners = [pod.run("/bin/sh", "-c", BURN) for _ in range(2)]
    wait_until(lambda: all(stats(c).cpu.usage_core_nano_seconds.value > 100_000_000 for c in burners))
    found = pod_stats(pod)
    assert found.attributes.id == pod.id
    assert found.attributes.labels == pod.config.labels
    assert {c.attributes.id for c in found.linux.containers} == {c.id for c in burners}
    assert found.linux.process.process_count.value == 2
    alone = [c.cpu.usage_core_nano_seconds.value for c in found.linux.containers]
    assert found.linux.cpu.usage_core_nano_seconds.value >= 0.9 * sum(alone)
    listing = kubelet.runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest()).stats
    assert [s.attributes.id for s in listing] == [pod.id]
    parts = kubelet.runtime.StreamPodSandboxStats(cri.StreamPodSandboxStatsRequest())
    assert [s.attributes.id for part in parts for s in part.pod_sandbox_stats] == [pod.id]
    pod.stop()
    assert not pod_stats(pod).HasField("linux")


@pytest.mark.skipif(cgroups.detect().mode is not Mode.V2, reason="statistics of this host are cgroup v1's")
def test_a_threaded_group_in_one_container_disturbs_no_list(kubelet: Kubelet) -> None:
    threaded, other = kubelet.pod().run("/bin/sleep", "100"), kubelet.pod().run("/bin/sleep", "100")
    inner = Path(group_of(threaded).directory()) / "t"
    inner.mkdir()
    (inner / "cgroup.type").write_text("threaded")
    pods = kubelet.runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest()).stats
    counts = {pod.attributes.id: pod.linux.process.process_count.value for pod in pods}
    assert counts == {threaded.pod.id: 1, other.pod.id: 1}
    metrics = kubelet.runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest()).pod_metrics
    assert {pod.pod_sandbox_id for pod in metrics} == set(counts)
    threaded.stop()
    assert threaded.status().state == cri.CONTAINER_EXITED


def test_host_network_is_not_counted_as_the_pods(kubelet: Kubelet) -> None:
    pod = kubelet.pod(network=cri.NODE)
    assert not pod_stats(pod).linux.HasField("network")


def test_filters(kubelet: Kubelet) -> None:
    pod, other = kubelet.pod(), kubelet.pod()
    labelled = pod.run("/bin/sleep", "1000", config=cri.ContainerConfig(labels={"a": "b"}))
    plain = other.run("/bin/sleep", "1000")
    created = other.create("/bin/sleep", "1000")
    ended = other.shell("true")
    assert listed(kubelet) == {labelled.id, plain.id, created.id}
    assert listed(kubelet, label_selector={"a": "b"}) == {labelled.id}
    assert listed(kubelet, label_selector={"a": "c"}) == set()
    assert listed(kubelet, pod_sandbox_id=other.id) == {plain.id, created.id}
    assert listed(kubelet, id=plain.id[:20]) == {plain.id}
    parts = kubelet.runtime.StreamContainerStats(cri.StreamContainerStatsRequest())
    assert {s.attributes.id for part in parts for s in part.container_stats} == {labelled.id, plain.id, created.id}
    assert stats(ended).attributes.id == ended.id
    with pytest.raises(grpc.RpcError) as caught:
        kubelet.runtime.ContainerStats(cri.ContainerStatsRequest(container_id="0" * 64))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_nothing_stays_open_of_what_is_removed(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.run("/bin/sleep", "1000")
    group = group_of(container)
    assert stats(container).cpu.timestamp > 0
    assert kubelet.daemon.process is not None
    fds = Path(f"/proc/{kubelet.daemon.process.pid}/fd")
    assert any(group.path in os.readlink(fd) for fd in fds.iterdir() if fd.is_symlink()), "kept for the next look"
    container.remove()
    assert not group.exists(), "an open file does not hold the group"
    assert listed(kubelet) == set()
