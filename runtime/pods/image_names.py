"""What a container's status says of its image: a stored tag, and the digest that the registry knows it by.

`ContainerStatus.image_ref` becomes `imageID` in the status of the pod, which people and scanners look up in a registry:
repository@digest, as with containerd and CRI-O. The image's id, by which the kubelet tells which images are in use, stands
in `image_id`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from imagesvc.references import try_parse

if TYPE_CHECKING:
    from imagesvc.store.images import Image


class Names(NamedTuple):
    """Of one image, as one request named it."""

    name: str
    """A tag that is stored here, of the repository that was named if it has one; what was written if there is none."""
    reference: str
    """repository@digest, chosen in the same way; the image's id if no registry has served it."""


def names(image: Image, asked: str) -> Names:
    """The names of an image that a request calls `asked`: a tag, a digest, a short name, or an id."""
    reference = try_parse(asked)
    repository = reference.name if reference is not None else ""
    tags = sorted(image.repo_tags, key=lambda tag: (tag != str(reference), not tag.startswith(f"{repository}:")))
    digests = sorted(image.repo_digests, key=lambda digest: not digest.startswith(f"{repository}@"))
    return Names(name=next(iter((*tags, *digests)), asked), reference=next(iter(digests), image.id))
