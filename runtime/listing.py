"""Lists that no single record can fail: what cannot be said is left out, with a line in the log.

Lists are asked for every second, and most of what they say has been said before. So each entry's encoding is kept beside its
object, and a reply is put together from them: a message with one repeated field is the row of its entries (protobuf's wire
format, "Message Structure").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

import structlog

log = structlog.get_logger()

_FIELD_1: Final = b"\x0a"
"""Tag of a field number 1 that holds a message: all lists of CRI have their entries there."""


class Encoded(NamedTuple):
    """A reply as it goes over the wire."""

    data: bytes


def entry(*fields: bytes) -> bytes:
    """An encoded message as an entry of a list; it may be given in parts, of some of its fields each."""
    size = sum(map(len, fields))
    length = bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"".join((_FIELD_1, length, *fields))


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
