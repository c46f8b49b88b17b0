"""runtime/pods/image_names.py"""

from __future__ import annotations

from dataclasses import replace

import pytest

from imagesvc.store.images import IMAGE, Image, OciConfig
from runtime.pods.image_names import Names, names

ID = "sha256:" + "a" * 64
HUB, MIRROR = "docker.io/library/nginx", "mirror.example/nginx"
DIGEST = "sha256:" + "b" * 64
IMAGE_HERE = Image(
    id=ID,
    kind=IMAGE,
    repo_tags=(f"{MIRROR}:1", f"{HUB}:1", f"{HUB}:latest"),
    repo_digests=(f"{MIRROR}@{DIGEST}", f"{HUB}@{DIGEST}"),
    size=1,
    config=OciConfig(),
    pinned=False,
    layers=(),
)


@pytest.mark.parametrize(
    ("asked", "name", "reference"),
    [
        ("nginx", f"{HUB}:latest", f"{HUB}@{DIGEST}"),
        ("nginx:1", f"{HUB}:1", f"{HUB}@{DIGEST}"),
        (f"{MIRROR}:1", f"{MIRROR}:1", f"{MIRROR}@{DIGEST}"),
        (f"{HUB}@{DIGEST}", f"{HUB}:1", f"{HUB}@{DIGEST}"),
        (ID, f"{MIRROR}:1", f"{MIRROR}@{DIGEST}"),
        ("gone.example/x", f"{MIRROR}:1", f"{MIRROR}@{DIGEST}"),
    ],
)
def test_the_tag_and_the_digest_of_the_repository_that_was_named(asked: str, name: str, reference: str) -> None:
    assert names(IMAGE_HERE, asked) == Names(name, reference)


def test_images_that_lack_names() -> None:
    untagged = replace(IMAGE_HERE, repo_tags=())
    assert names(untagged, "nginx") == Names(f"{HUB}@{DIGEST}", f"{HUB}@{DIGEST}")
    unknown = replace(untagged, repo_digests=())
    assert names(unknown, "nginx") == Names("nginx", ID)
