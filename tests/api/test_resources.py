"""Where a pod's cgroups are, and limits that a host can lack; what every host has: test_containers.py."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from kernel import cgroups
from proto import api_pb2 as cri
from tests.harness.kubelet import Container, Kubelet

pytestmark = pytest.mark.root

MIB = 1024 * 1024


def group_of(container: Container) -> cgroups.Group:
    reply = container.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container.id, verbose=True))
    hierarchies = cgroups.detect()
    return hierarchies.group(cgroups.of_process(int(json.loads(reply.info["info"])["pid"]), hierarchies))


def test_cgroup_parent(kubelet: Kubelet) -> None:
    """The kubelet makes the pod's group and sets its limits: containers go below it, and it stays."""
    if kubelet.runtime.RuntimeConfig(cri.RuntimeConfigRequest()).linux.cgroup_driver == cri.SYSTEMD:
        pytest.skip("pods' groups are systemd's slices here")
    parent = cgroups.detect().group(f"{kubelet.daemon.cgroup_parent.strip('/')}/kubepods-pod1")
    parent.create()
    try:
        config = kubelet.pod_config()
        config.linux.cgroup_parent = f"/{parent.path}"
        pod = kubelet.pod(config)
        container = pod.run("/bin/sleep", "100")
        assert group_of(container).path == f"{parent.path}/{container.id}"
        pod.stop()
        pod.remove()
        assert Path(parent.directory()).is_dir()
    finally:
        assert parent.remove()


@pytest.mark.controllers("memory")
def test_swap_and_huge_pages_where_the_host_counts_them(kubelet: Kubelet) -> None:
    wanted = cri.ContainerConfig()
    limits = wanted.linux.resources
    limits.memory_limit_in_bytes, limits.memory_swap_limit_in_bytes = 64 * MIB, 96 * MIB
    limits.hugepage_limits.add(page_size="2MB", limit=4 * MIB)
    group = group_of(kubelet.pod().run("/bin/sleep", "100", config=wanted))
    swap = Path(group.directory("memory"), "memory.memsw.limit_in_bytes")
    if swap.exists():
        assert int(swap.read_text()) == 96 * MIB
    pages = Path(group.directory("hugetlb"), "hugetlb.2MB.limit_in_bytes")
    if pages.exists():
        assert int(pages.read_text()) == 4 * MIB


@pytest.mark.parametrize("key", ["../../cgroup.procs", "memory", "a/b.c", ""])
def test_unified_keys_are_names_of_files(kubelet: Kubelet, key: str) -> None:
    wanted = cri.ContainerConfig()
    wanted.linux.resources.unified[key] = "1"
    with pytest.raises(grpc.RpcError, match="no control file"):
        kubelet.pod().create("/bin/true", config=wanted)


def test_a_limit_that_the_kernel_refuses_says_so(kubelet: Kubelet) -> None:
    wanted = cri.ContainerConfig()
    wanted.linux.resources.cpuset_cpus = "4000"
    with pytest.raises(grpc.RpcError, match="cpuset"):
        kubelet.pod().create("/bin/true", config=wanted)
