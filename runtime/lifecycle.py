"""States of sandboxes and containers, and what may happen in each.

    sandbox     CREATING ──ready──▶ READY ──stop──▶ STOPPED ──remove──▶ (gone)
                   └────fail/remove────────────────────────────────────▶ (gone)

    container   CREATING ──created──▶ CREATED ──start──▶ RUNNING ──exit──▶ EXITED ──remove──▶ (gone)
                   │                     ├──exit (killed before start)───────▲
                   └──fail──▶ (gone)     └──lost──▶ UNKNOWN ◀──lost──┘        │
                                                      └──exit────────────────┘

Records keep facts (times, an exit code); these enums are derived from them and never stored. CREATING objects are not
listed: a kubelet that saw one would collect it as garbage.
"""

from __future__ import annotations

import enum
from typing import Final

from proto.errors import failed_precondition


class SandboxState(enum.Enum):
    """Derived from SandboxRecord."""

    CREATING = "creating"
    READY = "ready"
    STOPPED = "stopped"


class ContainerState(enum.Enum):
    """Derived from ContainerRecord."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


class Event(enum.Enum):
    """What can happen to a container."""

    CREATED = "created"
    START = "start"
    EXIT = "exit"
    LOST = "lost"
    REMOVE = "remove"


TRANSITIONS: Final[dict[tuple[ContainerState, Event], ContainerState | None]] = {
    (ContainerState.CREATING, Event.CREATED): ContainerState.CREATED,
    (ContainerState.CREATING, Event.REMOVE): None,
    (ContainerState.CREATED, Event.START): ContainerState.RUNNING,
    (ContainerState.CREATED, Event.EXIT): ContainerState.EXITED,
    (ContainerState.CREATED, Event.LOST): ContainerState.UNKNOWN,
    (ContainerState.CREATED, Event.REMOVE): None,
    (ContainerState.RUNNING, Event.EXIT): ContainerState.EXITED,
    (ContainerState.RUNNING, Event.LOST): ContainerState.UNKNOWN,
    (ContainerState.UNKNOWN, Event.EXIT): ContainerState.EXITED,
    (ContainerState.UNKNOWN, Event.REMOVE): None,
    (ContainerState.EXITED, Event.REMOVE): None,
}
"""The next state, None for gone; a pair that is missing is refused."""


def check(state: ContainerState, event: Event, container_id: str) -> None:
    """Raise FAILED_PRECONDITION if the event cannot happen in this state."""
    if (state, event) not in TRANSITIONS:
        raise failed_precondition(f"container {container_id} is {state.value}: cannot {event.value} it")
