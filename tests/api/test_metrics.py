"""ListMetricDescriptors and ListPodSandboxMetrics: what is declared is delivered, in the order of its labels."""

from __future__ import annotations

import pytest

from proto import api_pb2 as cri
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

UNKNOWN_HERE = {"container_hugetlb_usage_bytes", "container_hugetlb_max_usage_bytes", "container_spec_cpu_quota"}
BLOCK_IO = {"container_blkio_device_usage_total"} | {
    f"container_fs_{name}_total" for name in ("reads", "reads_bytes", "writes", "writes_bytes")
}
PRESSURE = "container_pressure_"


def declared(kubelet: Kubelet) -> dict[str, list[str]]:
    reply = kubelet.runtime.ListMetricDescriptors(cri.ListMetricDescriptorsRequest())
    assert all(descriptor.help for descriptor in reply.descriptors)
    found = {descriptor.name: list(descriptor.label_keys) for descriptor in reply.descriptors}
    assert len(found) == len(reply.descriptors)
    return found


@pytest.mark.controllers("cpu", "memory")
def test_declared_and_delivered(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.run("/bin/sleep", "1000")
    keys = declared(kubelet)
    [found] = kubelet.runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest()).pod_metrics
    assert found.pod_sandbox_id == pod.id
    [inner] = found.container_metrics
    assert inner.container_id == container.id
    every = [*found.metrics, *inner.metrics]
    delivered = {metric.name for metric in every}
    assert delivered <= set(keys)
    missing = {name for name in set(keys) - delivered - UNKNOWN_HERE - BLOCK_IO if not name.startswith(PRESSURE)}
    assert missing == set()
    for metric in every:
        assert len(metric.label_values) == len(keys[metric.name]), metric.name
        assert metric.timestamp == 0
        assert metric.HasField("value")
    identities = [(m.name, *m.label_values) for m in every]
    assert len(set(identities)) == len(identities), "Prometheus refuses duplicates"
    labels = dict(zip(keys[inner.metrics[0].name], inner.metrics[0].label_values, strict=True))
    assert (labels["pod"], labels["namespace"], labels["name"]) == (pod.config.metadata.name, "tests", container.id)
    streamed = kubelet.runtime.StreamPodSandboxMetrics(cri.StreamPodSandboxMetricsRequest())
    assert [m.pod_sandbox_id for part in streamed for m in part.pod_sandbox_metrics] == [pod.id]


def value(kubelet: Kubelet, name: str, *labels: str) -> int:
    reply = kubelet.runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest())
    for pod in reply.pod_metrics:
        for container in pod.container_metrics:
            for metric in container.metrics:
                if metric.name == name and metric.label_values[6:] == list(labels):
                    return int(metric.value.value)
    return -1


@pytest.mark.controllers("cpu", "memory")
def test_values(kubelet: Kubelet) -> None:
    config = cri.ContainerConfig()
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    config.linux.resources.cpu_quota = 20_000
    config.linux.resources.cpu_period = 100_000
    config.linux.resources.cpu_shares = 512
    container = kubelet.pod().run("/bin/sh", "-c", "sleep 1000 & while true; do :; done", config=config)
    assert value(kubelet, "container_spec_memory_limit_bytes") == 64 << 20
    assert value(kubelet, "container_spec_cpu_quota") == 20_000
    assert value(kubelet, "container_spec_cpu_shares") == pytest.approx(512, rel=0.1), "v2 keeps a weight, which is coarser"
    assert value(kubelet, "container_start_time_seconds") == container.status().started_at // 1_000_000_000
    wait_until(lambda: value(kubelet, "container_processes") == 2)
    wait_until(lambda: value(kubelet, "container_cpu_cfs_throttled_periods_total") > 2)
    assert value(kubelet, "container_file_descriptors") >= 6
    assert value(kubelet, "container_ulimits_soft", "max_open_files") > 0
