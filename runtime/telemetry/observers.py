"""Who hears of each call: figures and traces, if the configuration asks for them. Nothing of theirs is loaded if not."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from runtime.telemetry.http_answers import HttpAnswers

if TYPE_CHECKING:
    from runtime.api.server import Observer
    from runtime.pods.node import Node
    from runtime.telemetry.http_answers import Handler


async def start(node: Node, stack: AsyncExitStack) -> list[Observer]:
    """Start what is configured; `stack` ends it. Raises CrispError if it cannot be."""
    observers: list[Observer] = []
    metrics, tracing = node.config.metrics, node.config.tracing
    if metrics.address:
        from runtime.telemetry.prometheus import Telemetry  # noqa: PLC0415

        telemetry = Telemetry(node)
        await _serving(telemetry.answer, stack).listen_tcp(metrics.address)
        observers.append(telemetry.observe)
    if metrics.cadvisor_socket:
        from runtime.telemetry.cadvisor import Cadvisor  # noqa: PLC0415

        cadvisor = Cadvisor(node, metrics.cadvisor_socket)
        stack.push_async_callback(cadvisor.stop)
        await cadvisor.start()
    if tracing.endpoint:
        from runtime.telemetry.tracing import Tracing  # noqa: PLC0415

        spans = Tracing(tracing)
        stack.push_async_callback(asyncio.to_thread, spans.close)
        observers.append(spans.observe)
    return observers


def _serving(handler: Handler, stack: AsyncExitStack) -> HttpAnswers:
    server = HttpAnswers(handler)
    stack.push_async_callback(server.stop)
    return server
