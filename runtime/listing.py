"""Lists that no single record can fail: what cannot be said is left out, with a line in the log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import structlog

log = structlog.get_logger()

S = TypeVar("S")
M = TypeVar("M")


def each(items: Iterable[S], build: Callable[[S], M], identity: Callable[[S], str]) -> Iterator[M]:
    """What `build` makes of each item; one at which it raises is left out."""
    for item in items:
        try:
            message = build(item)
        except Exception as error:
            log.error("left out of a list: it cannot be said", id=identity(item), error=repr(error))
            continue
        yield message
