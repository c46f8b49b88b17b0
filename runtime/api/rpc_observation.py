"""The part of RuntimeService for looking on: statistics, metrics, events, lists in parts, checkpoints; and for resizing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from proto import api_pb2 as cri
from runtime.api import batches
from runtime.checkpoints import checkpoint_container, checkpoint_pod, restore_pod
from runtime.listing import Encoded
from runtime.pods import container_update
from runtime.statistics import metric_set
from runtime.statistics.metrics import PodMetrics
from runtime.statistics.stats import Stats

if TYPE_CHECKING:
    from runtime.pods.node import Node


class ObservationRpcs:
    """One method per RPC, named as api.proto names it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._stats = Stats(node)
        self._metrics = PodMetrics(node, self._stats)

    def close(self) -> None:
        """End what goes on in the background."""
        self._stats.close()

    async def ContainerStats(self, request: cri.ContainerStatsRequest) -> cri.ContainerStatsResponse:
        """One container."""
        return cri.ContainerStatsResponse(stats=await self._stats.container(request.container_id))

    async def ListContainerStats(self, request: cri.ListContainerStatsRequest) -> Encoded:
        """Living containers that match: a ListContainerStatsResponse."""
        return await self._stats.containers(request.filter)

    async def StreamContainerStats(
        self, request: cri.StreamContainerStatsRequest
    ) -> AsyncIterator[cri.StreamContainerStatsResponse]:
        """As ListContainerStats, in parts."""
        items = self._stats.stream_containers(request.filter)
        async for reply in batches.batches(items, cri.StreamContainerStatsResponse, "container_stats"):
            yield reply

    async def PodSandboxStats(self, request: cri.PodSandboxStatsRequest) -> cri.PodSandboxStatsResponse:
        """One sandbox."""
        return cri.PodSandboxStatsResponse(stats=await self._stats.sandbox(request.pod_sandbox_id))

    async def ListPodSandboxStats(self, request: cri.ListPodSandboxStatsRequest) -> cri.ListPodSandboxStatsResponse:
        """Ready sandboxes that match."""
        return cri.ListPodSandboxStatsResponse(stats=await self._stats.sandboxes(request.filter))

    async def StreamPodSandboxStats(
        self, request: cri.StreamPodSandboxStatsRequest
    ) -> AsyncIterator[cri.StreamPodSandboxStatsResponse]:
        """As ListPodSandboxStats, in parts."""
        items = self._stats.stream_sandboxes(request.filter)
        async for reply in batches.batches(items, cri.StreamPodSandboxStatsResponse, "pod_sandbox_stats"):
            yield reply

    async def ListMetricDescriptors(self, request: cri.ListMetricDescriptorsRequest) -> cri.ListMetricDescriptorsResponse:
        """What ListPodSandboxMetrics delivers."""
        return cri.ListMetricDescriptorsResponse(descriptors=metric_set.descriptors())

    async def ListPodSandboxMetrics(self, request: cri.ListPodSandboxMetricsRequest) -> cri.ListPodSandboxMetricsResponse:
        """Metrics of all ready sandboxes."""
        return cri.ListPodSandboxMetricsResponse(pod_metrics=[item async for item in self._metrics.stream()])

    async def StreamPodSandboxMetrics(
        self, request: cri.StreamPodSandboxMetricsRequest
    ) -> AsyncIterator[cri.StreamPodSandboxMetricsResponse]:
        """As ListPodSandboxMetrics, in parts."""
        items = self._metrics.stream()
        async for reply in batches.batches(items, cri.StreamPodSandboxMetricsResponse, "pod_sandbox_metrics"):
            yield reply

    async def StreamPodSandboxes(self, request: cri.StreamPodSandboxesRequest) -> AsyncIterator[Encoded]:
        """As ListPodSandbox, in parts: StreamPodSandboxesResponses."""
        for reply in batches.encoded(batches.sandboxes(self._node.sandboxes.values(), request.filter)):
            yield reply

    async def StreamContainers(self, request: cri.StreamContainersRequest) -> AsyncIterator[Encoded]:
        """As ListContainers, in parts: StreamContainersResponses."""
        for reply in batches.encoded(batches.containers(self._node.containers.values(), request.filter)):
            yield reply

    async def GetContainerEvents(self, request: cri.GetEventsRequest) -> AsyncIterator[cri.ContainerEventResponse]:
        """Life-cycle events from now on."""
        async for event in self._node.events.subscribe():
            yield event

    async def CheckpointContainer(self, request: cri.CheckpointContainerRequest) -> cri.CheckpointContainerResponse:
        """Write a running container's state to an archive."""
        await checkpoint_container.checkpoint(self._node, request)
        return cri.CheckpointContainerResponse()

    async def CheckpointPod(self, request: cri.CheckpointPodRequest) -> cri.CheckpointPodResponse:
        """Write the state of a pod's containers, as of one moment, into a directory."""
        await checkpoint_pod.checkpoint_pod(self._node, request)
        return cri.CheckpointPodResponse()

    async def RestorePod(self, request: cri.RestorePodRequest) -> cri.RestorePodResponse:
        """Make a pod whose containers, once started, go on where a checkpoint left them."""
        return await restore_pod.restore(self._node, request)

    async def UpdateContainerResources(
        self, request: cri.UpdateContainerResourcesRequest
    ) -> cri.UpdateContainerResourcesResponse:
        """Resize a container in place."""
        await container_update.update(self._node, request)
        return cri.UpdateContainerResourcesResponse()

    async def UpdatePodSandboxResources(
        self, request: cri.UpdatePodSandboxResourcesRequest
    ) -> cri.UpdatePodSandboxResourcesResponse:
        """Take note of a pod's new resources."""
        await container_update.update_sandbox(self._node, request)
        return cri.UpdatePodSandboxResourcesResponse()
