"""Life-cycle events for GetContainerEvents.

A sender never waits: each subscriber has a bounded queue, and one that does not keep up is dropped, whereupon it lists
everything anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from proto import api_pb2 as cri
from proto.errors import Code, CrispError

if TYPE_CHECKING:
    from runtime.node import Container, Sandbox

QUEUE_EVENTS: Final = 4096
"""Events that a subscriber may be behind."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One event: its type, its subject (container or sandbox id), and the sandbox whose state goes with it."""

    type: int
    subject: str
    sandbox: Sandbox


class EventBus:
    """Hands events to whoever listens."""

    def __init__(self) -> None:
        self._subscribers: set[asyncio.Queue[Happening | None]] = set()

    def _publish(self, kind: int, subject: str, sandbox: Sandbox) -> None:
        for queue in list(self._subscribers):
            try:
                queue.put_nowait(Happening(kind, subject, sandbox))
            except asyncio.QueueFull:
                self._subscribers.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)

    async def subscribe(self) -> AsyncIterator[Happening]:
        """All events from now on; RESOURCE_EXHAUSTED once the subscriber is too far behind."""
        queue: asyncio.Queue[Happening | None] = asyncio.Queue(QUEUE_EVENTS)
        self._subscribers.add(queue)
        try:
            while (happening := await queue.get()) is not None:
                yield happening
            raise CrispError(Code.RESOURCE_EXHAUSTED, f"more than {QUEUE_EVENTS} events behind: list again")
        finally:
            self._subscribers.discard(queue)

    def container_created(self, container: Container) -> None:
        """After CreateContainer."""
        self._publish(cri.CONTAINER_CREATED_EVENT, container.record.id, container.sandbox)

    def container_started(self, container: Container) -> None:
        """After StartContainer."""
        self._publish(cri.CONTAINER_STARTED_EVENT, container.record.id, container.sandbox)

    def container_stopped(self, container: Container) -> None:
        """After the exit was recorded."""
        self._publish(cri.CONTAINER_STOPPED_EVENT, container.record.id, container.sandbox)

    def container_deleted(self, container: Container) -> None:
        """After RemoveContainer."""
        self._publish(cri.CONTAINER_DELETED_EVENT, container.record.id, container.sandbox)

    def sandbox_started(self, sandbox: Sandbox) -> None:
        """After RunPodSandbox: a sandbox is created and started at once."""
        self._publish(cri.CONTAINER_CREATED_EVENT, sandbox.record.id, sandbox)
        self._publish(cri.CONTAINER_STARTED_EVENT, sandbox.record.id, sandbox)

    def sandbox_stopped(self, sandbox: Sandbox) -> None:
        """After StopPodSandbox."""
        self._publish(cri.CONTAINER_STOPPED_EVENT, sandbox.record.id, sandbox)

    def sandbox_deleted(self, sandbox: Sandbox) -> None:
        """After RemovePodSandbox."""
        self._publish(cri.CONTAINER_DELETED_EVENT, sandbox.record.id, sandbox)
