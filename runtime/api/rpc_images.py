"""ImageService: one method per RPC, named as api.proto names it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import structlog

from imagesvc.registry.credentials import Auth
from proto import api_pb2 as cri
from proto.errors import invalid
from runtime.api import batches

if TYPE_CHECKING:
    from imagesvc.store.images import Image
    from runtime.pods.node import Node


log = structlog.get_logger()

_MAX_SIZE: Final = (1 << 64) - 1


class ImageService:
    """Images."""

    def __init__(self, node: Node) -> None:
        self._images = node.images

    async def ListImages(self, request: cri.ListImagesRequest) -> cri.ListImagesResponse:
        """Images that match."""
        return cri.ListImagesResponse(images=map(message, self._images.list(request.filter.image.image)))

    async def StreamImages(self, request: cri.StreamImagesRequest) -> AsyncIterator[cri.StreamImagesResponse]:
        """As ListImages, in parts."""
        items = map(message, self._images.list(request.filter.image.image))
        async for reply in batches.batches(items, cri.StreamImagesResponse, "images"):
            yield reply

    async def ImageStatus(self, request: cri.ImageStatusRequest) -> cri.ImageStatusResponse:
        """One image; a reply without image if it is absent."""
        if not request.image.image:
            raise invalid("ImageStatus without an image")
        image = self._images.resolve(request.image.image)
        info = await self._info(image) if request.verbose else {}
        if image is None:
            return cri.ImageStatusResponse(info=info)
        return cri.ImageStatusResponse(image=message(image), info=info)

    async def _info(self, image: Image | None) -> dict[str, str]:
        """For people: what is known of the image, and the pulls that run."""
        info = {"pulls": json.dumps([pull.describe() for pull in self._images.running_pulls()])}
        if image is not None:
            described = image.describe()
            described["imageSpec"]["history"] = list(await self._images.history(image))
            info["info"] = json.dumps(described)
        return info

    async def PullImage(self, request: cri.PullImageRequest) -> cri.PullImageResponse:
        """Fetch and unpack."""
        if not request.image.image:
            raise invalid("PullImage without an image")
        auth = None
        if request.HasField("auth"):
            given = request.auth
            auth = Auth(
                username=given.username,
                password=given.password,
                auth=given.auth,
                server_address=given.server_address,
                identity_token=given.identity_token,
                registry_token=given.registry_token,
            )
        return cri.PullImageResponse(image_ref=await self._images.pull(request.image.image, auth))

    async def RemoveImage(self, request: cri.RemoveImageRequest) -> cri.RemoveImageResponse:
        """Remove an image with all its names."""
        if not request.image.image:
            raise invalid("RemoveImage without an image")
        await self._images.remove(request.image.image)
        return cri.RemoveImageResponse()

    async def ImageFsInfo(self, request: cri.ImageFsInfoRequest) -> cri.ImageFsInfoResponse:
        """Space taken; images and writable layers lie on one file system."""
        usage = await self._images.fs_info()
        entry = cri.FilesystemUsage(
            timestamp=time.time_ns(),
            fs_id=cri.FilesystemIdentifier(mountpoint=usage.mountpoint),
            used_bytes=cri.UInt64Value(value=usage.used_bytes),
            inodes_used=cri.UInt64Value(value=usage.inodes_used),
        )
        return cri.ImageFsInfoResponse(image_filesystems=[entry], container_filesystems=[entry])


def message(image: Image) -> cri.Image:
    """The image as the CRI has it. One that cannot be said is told by its id alone: garbage collection must see it."""
    try:
        return _message(image)
    except Exception as error:
        log.error("an image cannot be said in full", id=image.id, error=repr(error))
        return cri.Image(id=image.id, spec=cri.ImageSpec(image=image.id), size=1, pinned=image.pinned)


def _message(image: Image) -> cri.Image:
    said = cri.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=min(image.size, _MAX_SIZE),
        username=image.username,
        spec=cri.ImageSpec(image=image.id),
        pinned=image.pinned,
    )
    if image.uid is not None:
        said.uid.value = image.uid
    return said
