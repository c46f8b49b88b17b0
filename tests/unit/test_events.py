"""runtime/pods/events.py: order, stamps, and subscribers that do not keep up."""

from __future__ import annotations

import asyncio

import pytest

from proto import api_pb2 as cri
from proto.errors import Code, CrispError
from runtime.pods import events
from runtime.pods.events import EventBus
from runtime.pods.objects import Container, Sandbox
from runtime.records import CLOCK, ContainerRecord, SandboxRecord


def pod() -> tuple[Sandbox, Container]:
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="p", uid="u"))
    sandbox = Sandbox(SandboxRecord(id="s", config=config, handler="", created_at=1, ready_at=2))
    record = ContainerRecord(
        id="c", sandbox_id="s", config=cri.ContainerConfig(), image_id="i", log_path="/l", created_at=3, made_at=4
    )
    container = Container(record, sandbox)
    sandbox.containers["c"] = container
    return sandbox, container


async def listen(bus: EventBus, count: int) -> list[cri.ContainerEventResponse]:
    found = []
    async for event in bus.subscribe():
        found.append(event)
        if len(found) == count:
            break
    return found


async def test_events_carry_the_state_of_their_moment() -> None:
    bus = EventBus()
    sandbox, container = pod()
    bus.sandbox_started(sandbox)  # nobody listens
    listener = asyncio.create_task(listen(bus, 3))
    await asyncio.sleep(0)
    bus.container_created(container)
    container.starting = True
    container.record.started_at = 5
    bus.container_started(container)
    container.record.finished_at = 6
    status_stamp = CLOCK.next_of(sandbox.record.config.metadata.uid)
    bus.container_stopped(container)
    first, second, third = await listener
    assert [e.container_event_type for e in (first, second, third)] == [0, 1, 2]
    states = [e.containers_statuses[0].state for e in (first, second, third)]
    assert states == [cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING, cri.CONTAINER_EXITED]
    assert first.created_at < second.created_at < status_stamp < third.created_at
    assert first.pod_sandbox_status.metadata.name == "p"


async def test_a_slow_subscriber_is_dropped_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUEUE_EVENTS", 10)
    bus = EventBus()
    _, container = pod()
    slow = bus.subscribe()
    pending = asyncio.ensure_future(anext(slow))
    fast = asyncio.create_task(listen(bus, 50))
    await asyncio.sleep(0)
    for _ in range(50):
        bus.container_created(container)
        await asyncio.sleep(0)
    assert len(await fast) == 50
    await pending
    with pytest.raises(CrispError) as caught:
        await anext(slow)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert bus.dropped == 1


async def test_a_subscriber_that_leaves_is_forgotten() -> None:
    bus = EventBus()
    _, container = pod()
    stream = bus.subscribe()
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    bus.container_created(container)
    await waiting
    await stream.aclose()
    assert not bus._subscribers
