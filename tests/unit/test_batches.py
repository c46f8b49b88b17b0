"""runtime/api/batches.py"""

from __future__ import annotations

from collections.abc import AsyncIterator

from proto import api_pb2 as cri
from runtime import listing
from runtime.api import batches


def images(count: int) -> list[cri.Image]:
    return [cri.Image(id=f"{number:05}" + "x" * 1000) for number in range(count)]


async def test_messages_are_bounded_and_hold_everything_in_order() -> None:
    sent = [reply async for reply in batches.batches(images(5000), cri.StreamImagesResponse, "images")]
    assert [image for reply in sent for image in reply.images] == images(5000)
    assert len(sent) == 5
    assert max(reply.ByteSize() for reply in sent) < batches.BATCH_BYTES + 20_000


async def test_asynchronous_items() -> None:
    async def items() -> AsyncIterator[cri.Image]:
        for image in images(3):
            yield image

    sent = [reply async for reply in batches.batches(items(), cri.StreamImagesResponse, "images")]
    assert [len(reply.images) for reply in sent] == [3]


async def test_nothing_to_send() -> None:
    assert [reply async for reply in batches.batches([], cri.StreamImagesResponse, "images")] == []


def test_entries_that_are_encoded_already() -> None:
    """The same parts, and a message for none of them."""
    found = [cri.Container(id=f"{number:05}" + "x" * 1000) for number in range(5000)]
    sent = list(batches.encoded(listing.entry(item.SerializeToString()) for item in found))
    assert [item for reply in sent for item in cri.StreamContainersResponse.FromString(reply.data).containers] == found
    assert (len(sent), max(len(reply.data) for reply in sent) < batches.BATCH_BYTES + 20_000) == (5, True)
    assert list(batches.encoded([])) == []
