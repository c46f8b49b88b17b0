"""runtime/telemetry/tracing.py, with an exporter that keeps the spans."""

from __future__ import annotations

import pytest

from proto.errors import Code, CrispError
from runtime.api.server import Call
from runtime.config.telemetry import TracingConfig

pytest.importorskip("opentelemetry.sdk", reason="crisp[tracing] is not installed")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runtime.telemetry.tracing import Tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"


def call(**metadata: str) -> Call:
    return Call("runtime.v1.RuntimeService", "StartContainer", False, tuple(metadata.items()), ids={"container": "c1"})


def test_a_span_for_each_call() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(TracingConfig("http://127.0.0.1:1"), exporter)
    tracing.observe(call(traceparent=PARENT), "OK")
    tracing.observe(call(), "NOT_FOUND")
    tracing.observe(call(traceparent=UNSAMPLED), "OK")
    tracing.close()
    followed, failed = exporter.get_finished_spans()
    assert followed.parent is not None
    assert (followed.context.trace_id, followed.parent.span_id) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
    assert followed.name == "runtime.v1.RuntimeService/StartContainer"
    assert followed.attributes is not None
    assert followed.attributes["container"] == "c1"
    assert followed.start_time is not None and followed.end_time is not None
    assert followed.start_time < followed.end_time
    assert failed.parent is None
    assert failed.status.description == "NOT_FOUND"


def test_sampling() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(TracingConfig("http://127.0.0.1:1", 0.0), exporter)
    tracing.observe(call(), "OK")
    tracing.close()
    assert exporter.get_finished_spans() == ()
    with pytest.raises(CrispError) as caught:
        Tracing(TracingConfig("http://127.0.0.1:1", 2.0), exporter)
    assert caught.value.code is Code.INVALID_ARGUMENT
