"""Streamed lists: items gathered into messages that stay far below what the client accepts, and sent as they are made.

A stream starts from a snapshot of what matched when the call came. Items are built while the stream runs, a message at a
time, so that a node with tens of thousands of exited containers needs memory for one message and not for all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final, TypeVar

from proto import api_pb2 as cri
from runtime import listing
from runtime.listing import Encoded
from runtime.pods import container_status, sandbox_status
from runtime.pods.objects import Container, Sandbox

BATCH_BYTES: Final = 1 << 20
"""A message is sent once it has this much; one item can exceed it, for a CRI request is itself bounded."""

M = TypeVar("M")


async def batches(items: Iterable[Any] | AsyncIterator[Any], message: type[M], field: str) -> AsyncIterator[M]:
    """Messages of type `message` whose repeated `field` holds the items; nothing is sent for no items."""
    reply = message()
    target, size = getattr(reply, field), 0
    async for item in _each(items):
        target.append(item)
        size += item.ByteSize()
        if size >= BATCH_BYTES:
            yield reply
            reply = message()
            target, size = getattr(reply, field), 0
    if target:
        yield reply


async def _each(items: Iterable[Any] | AsyncIterator[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterator):
        async for item in items:
            yield item
        return
    for item in items:
        yield item


def encoded(entries: Iterable[bytes]) -> Iterator[Encoded]:
    """The same of entries that are encoded already."""
    gathered, size = list[bytes](), 0
    for entry in entries:
        gathered.append(entry)
        size += len(entry)
        if size >= BATCH_BYTES:
            yield Encoded(b"".join(gathered))
            gathered, size = [], 0
    if gathered:
        yield Encoded(b"".join(gathered))


def containers(known: Iterable[Container], criteria: cri.ContainerFilter) -> Iterable[bytes]:
    """Containers that match now, in their present states, however long the caller takes to go through them."""
    # Of what a list shows, only the state ever changes.
    snapshot = [(container, container.record.state) for container in container_status.select(known, criteria)]
    return listing.each(snapshot, lambda seen: container_status.entry(*seen), lambda seen: seen[0].record.id)


def sandboxes(known: Iterable[Sandbox], criteria: cri.PodSandboxFilter) -> Iterable[bytes]:
    """As `containers`, for sandboxes."""
    snapshot = [(sandbox, sandbox.record.state) for sandbox in sandbox_status.select(known, criteria)]
    return listing.each(snapshot, lambda seen: sandbox_status.entry(*seen), lambda seen: seen[0].record.id)
