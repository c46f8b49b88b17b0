"""When the client of a call gives up. Calls go on without their clients; those whose client wants it otherwise look here."""

from __future__ import annotations

import time
from contextvars import ContextVar

from proto.errors import Code, CrispError

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def begin(remaining: float | None) -> None:
    """A call begins whose client waits for so many seconds, or for ever."""
    _deadline.set(None if remaining is None else time.monotonic() + remaining)


def check(doing: str) -> None:
    """Raise DEADLINE_EXCEEDED once the client of the present call has given up."""
    deadline = _deadline.get()
    if deadline is not None and time.monotonic() > deadline:
        raise CrispError(Code.DEADLINE_EXCEEDED, f"{doing}: the time that the client has given is over")
