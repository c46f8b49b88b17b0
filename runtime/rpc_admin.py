"""The Admin service: what the `crisp` command asks for beyond CRI (proto/admin.proto)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from imagesvc.credentials import Auth
from proto import admin_pb2 as admin
from proto.errors import invalid

if TYPE_CHECKING:
    from imagesvc.progress import PullProgress
    from runtime.node import Node

SHOW_SECONDS: Final = 0.1
"""How often progress is told."""


class AdminService:
    """Images beyond CRI."""

    def __init__(self, node: Node) -> None:
        self._images = node.images

    async def PullImage(self, request: admin.PullImageRequest) -> AsyncIterator[admin.ImageProgress]:
        """A pull that tells how far it is; it ends with its last client."""
        auth = None
        if request.HasField("credentials"):
            auth = Auth(username=request.credentials.username, password=request.credentials.password)
        changed = asyncio.Event()
        latest: list[PullProgress] = []

        def watch(progress: PullProgress) -> None:
            latest[:] = [progress]
            changed.set()

        pull = asyncio.ensure_future(self._images.pull(request.reference, auth, watch))
        pull.add_done_callback(lambda _done: changed.set())
        try:
            while not pull.done():
                await changed.wait()
                changed.clear()
                for layer in latest[0].layers if latest else ():
                    yield admin.ImageProgress(
                        item=layer.digest, stage=layer.state, current=layer.downloaded, total=layer.size
                    )
                await asyncio.wait((pull,), timeout=SHOW_SECONDS)
            yield admin.ImageProgress(done=True, image_ids=[await pull])
        finally:
            pull.cancel()

    async def ImportImages(self, request: admin.ImportImagesRequest) -> admin.ImportImagesResponse:
        """Read an archive of this host."""
        _absolute(request.path)
        return admin.ImportImagesResponse(image_ids=await self._images.import_archive(request.path))

    async def ExportImages(self, request: admin.ExportImagesRequest) -> admin.ExportImagesResponse:
        """Write an archive on this host."""
        _absolute(request.path)
        await self._images.export(list(request.references), request.path, request.format or "oci")
        return admin.ExportImagesResponse()

    async def AddRootfs(self, request: admin.AddRootfsRequest) -> admin.AddRootfsResponse:
        """An image of a plain directory."""
        _absolute(request.directory)
        return admin.AddRootfsResponse(image_id=await self._images.add_rootfs(request.name, request.directory))


def _absolute(path: str) -> None:
    if not path.startswith("/"):
        raise invalid(f"{path!r} is not an absolute path")
