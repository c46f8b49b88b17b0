"""What a repository has proved to have: content of this node is given to nobody else.

Digests and diff ids are no secrets: they stand in public manifests, logs and statuses. So a manifest that lists what another
tenant's private image has is no reason to give its bytes; a registry that answers HEAD for them is one only if it has given
them itself. A blob of this node counts as proved for a pull

    if an image that came from the same repository has it        whoever may read the manifest there may read its blobs
    if an image of the same registry has it, and the repository  the registry has the bytes, and says that they are this
    answers HEAD for it with the caller's credentials            repository's too

and else it is fetched, verified, and only then the same as what is here. A layer's blob and its diff id count as a pair, as
it was unpacked: a made-up configuration has no such pair.
"""

from __future__ import annotations

import collections

from imagesvc.manifests import Descriptor
from imagesvc.references import Reference, try_parse
from imagesvc.registry import auth
from imagesvc.registry.access import Access
from imagesvc.registry.client import RegistryClient
from imagesvc.registry.errors import RegistryFailure
from imagesvc.store.images import Image, ImageIndex
from imagesvc.transfer.sources import Source

_REMEMBERED = 8192
"""Layers of pulls that run, or whose image is not recorded: more are fetched again."""


class Proofs:
    """What is known by the records, and by pulls that are not recorded yet."""

    def __init__(self, index: ImageIndex, client: RegistryClient) -> None:
        self._index = index
        self._client = client
        self._fresh: collections.OrderedDict[tuple[str, str, str], None] = collections.OrderedDict()

    def has_document(self, reference: Reference, digest: str) -> bool:
        """Whether the repository has given this manifest, index or configuration. Reads memory."""
        return any(
            digest in (image.id, image.manifest, image.top) and reference.name in _repositories(image)
            for image in self._index.all()
        )

    def remember(self, source: Source, digest: str, diff_id: str) -> None:
        """The source has just given a layer's blob whole, and it unpacks to this diff id."""
        self._fresh[source.reference.name, digest, diff_id] = None
        while len(self._fresh) > _REMEMBERED:
            self._fresh.popitem(last=False)

    async def has_layer(self, source: Source, descriptor: Descriptor, diff_id: str) -> bool:
        """Whether the layer that this node has may be given to the source's caller."""
        reference = source.reference
        names = {name for name, digest, unpacked in self._fresh if (digest, unpacked) == (descriptor.digest, diff_id)}
        for image in self._index.all():
            if any((layer.digest, layer.diff_id) == (descriptor.digest, diff_id) for layer in image.layers):
                names |= _repositories(image)
        if reference.name in names:
            return True
        if not any(name.partition("/")[0] == reference.domain for name in names):
            return False
        return await self._answers_head(source, descriptor)

    async def _answers_head(self, source: Source, descriptor: Descriptor) -> bool:
        for access in source.accesses:
            try:
                if await self._head(access, descriptor.digest):
                    return True
            except RegistryFailure:
                continue
        return False

    async def _head(self, access: Access, digest: str) -> bool:
        scope = auth.pull_scope(access.endpoint.repository)
        async with self._client.request(access, "HEAD", access.endpoint.url("blobs", digest), scope) as reply:
            return reply.status == 200


def _repositories(image: Image) -> set[str]:
    """The repositories that have given an image: a tag alone may come from an archive or from `tag`."""
    found = (try_parse(name) for name in image.repo_digests)
    return {reference.name for reference in found if reference is not None}
