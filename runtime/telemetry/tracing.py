"""OpenTelemetry: a span for each call, as a child of the caller's span if it sent one (W3C `traceparent`; the kubelet does).

Only a daemon whose configuration names an endpoint loads this module, and with it the packages of `crisp[tracing]`. Spans
are sent in batches by the SDK's own thread; if nobody takes them they are dropped.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import structlog

from proto.errors import failed_precondition, invalid

try:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as missing:
    raise failed_precondition(f"[tracing] needs `pip install crisp[tracing]`: {missing}") from None

from proto.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from runtime.api.server import Call
    from runtime.config.telemetry import TracingConfig

log = structlog.get_logger(__name__)


class _Forward(logging.Handler):
    """What the SDK has to say goes into the daemon's own log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Only failures to send are ever logged by it."""
        log.warning("tracing", message=record.getMessage())


class Tracing:
    """Spans of one daemon."""

    def __init__(self, config: TracingConfig, exporter: SpanExporter | None = None) -> None:
        """INVALID_ARGUMENT if the configuration makes no sense."""
        if not 0 <= config.sampling_ratio <= 1:
            raise invalid(f"tracing.sampling_ratio: {config.sampling_ratio} is not between 0 and 1")
        sdk = logging.getLogger("opentelemetry")
        sdk.handlers, sdk.propagate = [_Forward()], False
        insecure = config.endpoint.startswith("http://")
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.sampling_ratio)),
            resource=Resource.create({"service.name": "crisp", "service.version": VERSION}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint=config.endpoint, insecure=insecure))
        )
        self._tracer = self._provider.get_tracer("crisp", VERSION)
        self._propagator = TraceContextTextMapPropagator()

    def observe(self, call: Call, code: str) -> None:
        """A call has ended: its span is made now, with the times that it had."""
        end = time.time_ns()
        parent = self._propagator.extract({key: str(value) for key, value in call.metadata})
        span = self._tracer.start_span(
            f"{call.service}/{call.method}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": call.service, "rpc.method": call.method, **call.ids},
            start_time=end - int(call.seconds * 1e9),
        )
        if code != "OK":
            span.set_status(Status(StatusCode.ERROR, code))
        span.end(end)

    def close(self) -> None:
        """Send what waits, for as long as the SDK's own limits let it."""
        self._provider.shutdown()
