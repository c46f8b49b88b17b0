"""The part of the Admin service that `crisp build` uses: a build's lease, its images, mounts and commits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from imagesvc.build.commit import Changes
from proto import admin_pb2 as admin
from proto.errors import failed_precondition, invalid
from runtime.lifecycle import ContainerState
from runtime.oci.mount_points import mount_points
from runtime.pods import builds

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Lease

NOT_REPLACED: Final = frozenset(("rootfs", "history"))
"""What a commit itself writes into a configuration document."""


class BuildRpcs:
    """One method per RPC, named as admin.proto names it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def HoldBuild(self, _request: admin.HoldBuildRequest) -> AsyncIterator[admin.HoldBuildResponse]:
        """A build, which ends with this call."""
        lease = await builds.begin(self._node)
        try:
            yield admin.HoldBuildResponse(
                build_id=lease.id,
                scratch=str(builds.scratch(self._node, lease.id)),
                memory=str(builds.memory(self._node, lease.id)),
                caches=str(self._node.paths.build_caches),
            )
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(asyncio.ensure_future(builds.end(self._node, lease)))

    async def UseBuildImage(self, request: admin.UseBuildImageRequest) -> admin.UseBuildImageResponse:
        """An image for a build, and its configuration document."""
        async with builds.using(self._node, request.build_id) as lease:
            image = builds.hold(self._node, lease, request.reference)
            document = await self._node.images.config_document(image)
        return admin.UseBuildImageResponse(image_id=image.id, config=document)

    async def MountBuildImage(self, request: admin.MountBuildImageRequest) -> admin.MountBuildImageResponse:
        """An image's files on this host."""
        async with builds.using(self._node, request.build_id) as lease:
            image = builds.hold(self._node, lease, request.image_id) if request.image_id else None
            name, directory = await builds.mount(self._node, lease, image, writable=request.writable)
        return admin.MountBuildImageResponse(mount_id=name, directory=directory)

    async def UnmountBuildImage(self, request: admin.UnmountBuildImageRequest) -> admin.UnmountBuildImageResponse:
        """The end of a mount."""
        async with builds.using(self._node, request.build_id) as lease:
            await builds.unmount(self._node, lease, request.mount_id)
        return admin.UnmountBuildImageResponse()

    async def CommitBuild(self, request: admin.CommitBuildRequest) -> admin.CommitBuildResponse:
        """An image of what a build has written."""
        changes = Changes(
            document={key: value for key, value in _object(request.config).items() if key not in NOT_REPLACED},
            history=[_object(line) for line in request.history],
            created=request.created if request.HasField("created") else None,
            excluded=tuple(path.strip("/") for path in request.excluded),
        )
        async with builds.using(self._node, request.build_id) as lease:
            base = builds.hold(self._node, lease, request.image_id) if request.image_id else None
            upper, not_written = self._written(lease, request)
            changes = replace(changes, excluded=(*changes.excluded, *not_written))
            image_id = await self._node.images.commit_step(base, upper, list(request.references), changes)
            builds.hold(self._node, lease, image_id)
        return admin.CommitBuildResponse(image_id=image_id)

    def _written(self, lease: Lease, request: admin.CommitBuildRequest) -> tuple[str, tuple[str, ...]]:
        """The directory that a build has written to, and what is not its own there."""
        if request.mount_id:
            if request.mount_id not in lease.mounts:
                raise invalid(f"{lease.id} has no mount {request.mount_id!r}")
            return str(builds.upper(self._node, lease.id, request.mount_id)), ()
        if not request.container_id:
            return "", ()
        container = self._node.container(request.container_id)
        record = container.record
        if container.sandbox.build != lease.id:
            raise invalid(f"container {record.id} is not one of {lease.id}")
        if record.state is not ContainerState.EXITED:
            raise failed_precondition(f"container {record.id} is {record.state.value}, and has not ended")
        layer = self._node.paths.writable_layer(record.id)
        return str(layer / "upper"), mount_points(mount.container_path for mount in record.config.mounts)

    async def PruneBuildCache(self, request: admin.PruneBuildCacheRequest) -> admin.PruneBuildCacheResponse:
        """What builds have left to be quick the next time."""
        left = await builds.prune(self._node, dry=request.dry)
        return admin.PruneBuildCacheResponse(images=left.steps, caches=left.caches, bytes=left.bytes)


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data or b"{}")
    except ValueError as error:
        raise invalid(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise invalid("a JSON object is wanted")
    return value
