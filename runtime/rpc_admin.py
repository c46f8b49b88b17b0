"""The Admin service: what the `crisp` command asks for beyond CRI (proto/admin.proto)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from imagesvc.credentials import Auth
from proto import admin_pb2 as admin
from proto.errors import invalid

if TYPE_CHECKING:
    from imagesvc.progress import Progress
    from runtime.node import Node


class AdminService:
    """Images beyond CRI."""

    def __init__(self, node: Node) -> None:
        self._images = node.images

    async def PullImage(self, request: admin.PullImageRequest) -> AsyncIterator[admin.ImageProgress]:
        """A pull that tells how far it is."""
        auth = None
        if request.HasField("credentials"):
            auth = Auth(username=request.credentials.username, password=request.credentials.password)

        async def work(progress: Callable[[Progress], None]) -> list[str]:
            return [await self._images.pull(request.reference, auth, progress)]

        async for step in _follow(work):
            yield step

    async def ImportImages(self, request: admin.ImportImagesRequest) -> AsyncIterator[admin.ImageProgress]:
        """Read an archive of this host."""
        _absolute(request.path)

        async def work(progress: Callable[[Progress], None]) -> list[str]:
            return await self._images.import_archive(request.path, progress)

        async for step in _follow(work):
            yield step

    async def ExportImages(self, request: admin.ExportImagesRequest) -> AsyncIterator[admin.ImageProgress]:
        """Write an archive on this host."""
        _absolute(request.path)

        async def work(progress: Callable[[Progress], None]) -> list[str]:
            await self._images.export(list(request.references), request.path, request.format or "oci", progress)
            return []

        async for step in _follow(work):
            yield step

    async def AddRootfs(self, request: admin.AddRootfsRequest) -> admin.AddRootfsResponse:
        """An image of a plain directory."""
        _absolute(request.directory)
        return admin.AddRootfsResponse(image_id=await self._images.add_rootfs(request.name, request.directory))


def _absolute(path: str) -> None:
    if not path.startswith("/"):
        raise invalid(f"{path!r} is not an absolute path")


async def _follow(
    work: Callable[[Callable[[Progress], None]], Awaitable[list[str]]],
) -> AsyncIterator[admin.ImageProgress]:
    """Run a piece of work and pass its progress on; it ends with the client."""
    steps: asyncio.Queue[Progress | None] = asyncio.Queue()
    task = asyncio.ensure_future(work(steps.put_nowait))
    task.add_done_callback(lambda _done: steps.put_nowait(None))
    try:
        while (step := await steps.get()) is not None:
            yield admin.ImageProgress(item=step.item, stage=step.stage, current=step.current, total=step.total)
        yield admin.ImageProgress(done=True, image_ids=await task)
    finally:
        task.cancel()
