"""Life-cycle events for GetContainerEvents.

An event carries the state of the whole pod, taken when it happens and stamped by the clock that stamps PodSandboxStatus:
of two messages about a pod, the one with the higher stamp is the newer, whichever call it came by. A subscriber who took
the state later than the event would let an old stamp overwrite new state.

A sender never waits: each subscriber has a bounded queue, and one that does not keep up is dropped, whereupon it lists
everything anew. Without subscribers an event costs nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from proto import api_pb2 as cri
from proto.errors import Code, CrispError
from runtime.lifecycle import ContainerState
from runtime.pods import container_status, sandbox_status
from runtime.records import CLOCK

if TYPE_CHECKING:
    from runtime.pods.objects import Container, Sandbox

QUEUE_EVENTS: Final = 4096
QUEUE_BYTES: Final = 8 << 20
"""How far a subscriber may be behind; an event larger than this by itself still passes."""


class _Subscriber:
    """Events that one client has not been sent yet."""

    def __init__(self) -> None:
        self.queue: deque[tuple[cri.ContainerEventResponse, int]] = deque()
        self.bytes = 0
        self.dropped = False
        self.changed = asyncio.Event()

    def offer(self, event: cri.ContainerEventResponse, size: int) -> bool:
        """Queue an event; False if there is no room: the client is dropped."""
        if len(self.queue) >= QUEUE_EVENTS or (self.queue and self.bytes + size > QUEUE_BYTES):
            self.dropped = True
            self.queue.clear()
        else:
            self.queue.append((event, size))
            self.bytes += size
        self.changed.set()
        return not self.dropped

    async def take(self) -> cri.ContainerEventResponse:
        """The next event; RESOURCE_EXHAUSTED if the client was dropped."""
        while not self.queue:
            if self.dropped:
                raise CrispError(Code.RESOURCE_EXHAUSTED, "too far behind in the events: list again")
            self.changed.clear()
            await self.changed.wait()
        event, size = self.queue.popleft()
        self.bytes -= size
        return event


class EventBus:
    """Hands events to whoever listens."""

    def __init__(self) -> None:
        self._subscribers: set[_Subscriber] = set()
        self._stopped: set[str] = set()
        """Sandboxes whose stop was told: the kubelet stops each several times."""
        self.dropped = 0
        """Subscribers that did not keep up."""

    def _publish(self, kind: cri.ContainerEventType, subject: str, sandbox: Sandbox) -> None:
        if not self._subscribers or sandbox.build:
            return
        event = _message(kind, subject, sandbox)
        size = event.ByteSize()
        for subscriber in list(self._subscribers):
            if not subscriber.offer(event, size):
                self._subscribers.discard(subscriber)
                self.dropped += 1

    async def subscribe(self) -> AsyncIterator[cri.ContainerEventResponse]:
        """All events from now on; RESOURCE_EXHAUSTED once the subscriber is too far behind."""
        subscriber = _Subscriber()
        self._subscribers.add(subscriber)
        try:
            while True:
                yield await subscriber.take()
        finally:
            self._subscribers.discard(subscriber)

    def container_created(self, container: Container) -> None:
        """After CreateContainer."""
        self._publish(cri.CONTAINER_CREATED_EVENT, container.record.id, container.sandbox)

    def container_started(self, container: Container) -> None:
        """After StartContainer; once, for an exit that overtakes it tells of the start first."""
        if not container.starting:
            return
        container.starting = False
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
        if sandbox.record.id not in self._stopped:
            self._stopped.add(sandbox.record.id)
            self._publish(cri.CONTAINER_STOPPED_EVENT, sandbox.record.id, sandbox)

    def sandbox_deleted(self, sandbox: Sandbox) -> None:
        """After RemovePodSandbox."""
        self._stopped.discard(sandbox.record.id)
        self._publish(cri.CONTAINER_DELETED_EVENT, sandbox.record.id, sandbox)


def _message(kind: cri.ContainerEventType, subject: str, sandbox: Sandbox) -> cri.ContainerEventResponse:
    listed = [c for c in sandbox.containers.values() if c.record.state is not ContainerState.CREATING]
    return cri.ContainerEventResponse(
        container_id=subject,
        container_event_type=kind,
        created_at=CLOCK.next_of(sandbox.record.config.metadata.uid),
        # Also of a sandbox that is gone: the kubelet ignores events without it.
        pod_sandbox_status=sandbox_status.status(sandbox),
        containers_statuses=map(container_status.status, listed),
    )
