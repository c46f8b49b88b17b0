"""The daemon's own figures, for Prometheus: calls, pulls, containers, shims, recovery, events.

Only a daemon whose configuration asks for the endpoint loads this module. What the node knows anyway is read when it is
asked for; calls are counted as they end.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from proto.version import VERSION
from runtime.lifecycle import ContainerState, SandboxState
from runtime.telemetry.http_answers import MISSING, Answer

if TYPE_CHECKING:
    from runtime.api.server import Call
    from runtime.pods.node import Node

CALL_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
PULL_BUCKETS: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)


class Telemetry:
    """Figures of one daemon."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._calls = Histogram(
            "crisp_rpc_duration_seconds", "Calls by method.", ("method",), buckets=CALL_BUCKETS, registry=self._registry
        )
        self._errors = Counter(
            "crisp_rpc_errors", "Calls that failed, by method and code.", ("method", "code"), registry=self._registry
        )
        self._pulls = Histogram(
            "crisp_image_pull_duration_seconds",
            "Pulls by outcome.",
            ("code",),
            buckets=PULL_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(self)

    def observe(self, call: Call, code: str) -> None:
        """A call has ended."""
        if call.method == "PullImage":
            self._pulls.labels(code).observe(call.seconds)
        elif not call.streaming:  # a stream lasts as long as its client likes
            self._calls.labels(call.method).observe(call.seconds)
        if code != "OK":
            self._errors.labels(call.method, code).inc()

    async def answer(self, path: str) -> Answer:
        """For HttpAnswers."""
        if path != "/metrics":
            return MISSING
        return Answer(generate_latest(self._registry), CONTENT_TYPE_LATEST)

    def collect(self) -> Iterator[Metric]:
        """What the node knows now (called by prometheus_client)."""
        node = self._node
        yield _gauge("crisp_build_info", "The running version.", {VERSION: 1}, "version")
        states = Tally(container.record.state.value for container in list(node.containers.values()))
        yield _gauge(
            "crisp_containers",
            "Containers by state.",
            {state.value: states[state.value] for state in ContainerState},
            "state",
        )
        pods = Tally(sandbox.record.state.value for sandbox in list(node.sandboxes.values()))
        yield _gauge(
            "crisp_sandboxes", "Sandboxes by state.", {state.value: pods[state.value] for state in SandboxState}, "state"
        )
        shims = sum(container.shim is not None for container in list(node.containers.values()))
        yield GaugeMetricFamily("crisp_shims", "Shims that are connected.", value=shims)
        yield GaugeMetricFamily("crisp_fork_server_up", "Whether the fork server runs.", value=node.fork_server.alive)
        yield GaugeMetricFamily("crisp_images", "Images.", value=len(node.images.list("")))
        pulls = node.images.running_pulls()
        yield GaugeMetricFamily("crisp_image_pulls_running", "Pulls that run now.", value=len(pulls))
        yield GaugeMetricFamily(
            "crisp_image_pulls_running_bytes",
            "Compressed bytes that the running pulls have fetched.",
            value=sum(pull.downloaded for pull in pulls),
        )
        yield GaugeMetricFamily("crisp_recovery_seconds", "How long recovery took at start.", value=node.recovery_seconds)
        yield CounterMetricFamily("crisp_containers_lost", "Containers whose shim was killed.", value=node.lost_containers)
        yield GaugeMetricFamily("crisp_store_failing", "Whether records cannot be written.", value=bool(node.store.failure))
        yield CounterMetricFamily(
            "crisp_event_subscribers_dropped",
            "Clients of GetContainerEvents that did not keep up.",
            value=node.events.dropped,
        )
        yield from self._plugins()

    def _plugins(self) -> Iterator[Metric]:
        plugins, figures = self._node.plugins, self._node.plugins.figures
        ready = sum(plugin.ready for plugin in plugins)
        yield GaugeMetricFamily("crisp_nri_plugins", "NRI plugins that take part.", value=ready)
        requests = CounterMetricFamily(
            "crisp_nri_requests", "What NRI plugins were asked.", labels=("plugin", "request", "outcome")
        )
        for key, count in figures.requests.items():
            requests.add_metric(key, count)
        yield requests
        seconds = CounterMetricFamily("crisp_nri_request_seconds", "What that took.", labels=("plugin", "request"))
        for pair, took in figures.seconds.items():
            seconds.add_metric(pair, took)
        yield seconds
        closed = CounterMetricFamily("crisp_nri_plugins_closed", "NRI plugins whose connection ended.", labels=("reason",))
        for reason, count in figures.closed.items():
            closed.add_metric((reason,), count)
        yield closed


def _gauge(name: str, text: str, values: dict[str, int], label: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family
