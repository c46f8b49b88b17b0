"""One record that cannot be said leaves the others in the list."""

from __future__ import annotations

from dataclasses import replace

import pytest

from imagesvc.store.images import IMAGE, Image, OciConfig
from proto import api_pb2 as cri
from runtime import listing
from runtime.api.rpc_images import message

PLAIN = Image("sha256:" + "1" * 64, IMAGE, ("r.example/a:v1",), (), 10, OciConfig(), False, ())


@pytest.mark.parametrize(
    "image",
    [
        replace(PLAIN, config=OciConfig(user="9" * 30)),
        replace(PLAIN, config=OciConfig(user="²")),
        replace(PLAIN, config=OciConfig(user="a\ud800")),
        replace(PLAIN, repo_tags=("\udfff",)),
        replace(PLAIN, size=1 << 70),
        replace(PLAIN, size=-1),
    ],
)
def test_every_image_can_be_listed(image: Image) -> None:
    answer = cri.ListImagesResponse(images=map(message, [image, PLAIN]))
    assert [i.id for i in answer.images] == [PLAIN.id] * 2
    assert answer.images[0].size
    assert cri.ListImagesResponse.FromString(answer.SerializeToString()) == answer


def test_numbers_of_users_are_gos() -> None:
    assert replace(PLAIN, config=OciConfig(user="9223372036854775807:1")).uid == (1 << 63) - 1
    for text in ("9223372036854775808", "١٢٣", "²", "1_0"):
        assert replace(PLAIN, config=OciConfig(user=text)).uid is None


def test_what_cannot_be_said_is_left_out() -> None:
    built = listing.each(["1", "x", "3"], int, str)
    assert list(built) == [1, 3]


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 129, 16383, 16384, 3_000_000])
def test_entries_that_were_encoded_before_are_a_list(size: int) -> None:
    """In one part, or with some of their fields apart."""
    attributes = cri.ContainerAttributes(id="1" * size)
    rest = cri.ContainerStats(writable_layer={"timestamp": size})
    apart = listing.entry(cri.ContainerStats(attributes=attributes).SerializeToString(), rest.SerializeToString())
    whole = listing.entry(rest.SerializeToString())
    rest_and_attributes = cri.ContainerStats(attributes=attributes, writable_layer={"timestamp": size})
    expected = cri.ListContainerStatsResponse(stats=[rest_and_attributes, rest])
    assert cri.ListContainerStatsResponse.FromString(apart + whole) == expected


def test_the_lists_that_are_put_together_have_their_entries_in_field_1() -> None:
    streamed = (cri.StreamContainersResponse, cri.StreamPodSandboxesResponse)
    for reply in (cri.ListContainersResponse, cri.ListPodSandboxResponse, cri.ListContainerStatsResponse, *streamed):
        assert [field.number for field in reply.DESCRIPTOR.fields] == [1]
