"""The Admin service: what the `crisp` command asks for beyond CRI (proto/admin.proto)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from imagesvc.build.commit import Changes
from imagesvc.registry.credentials import Auth
from proto import admin_pb2 as admin
from proto.errors import failed_precondition, invalid, not_found
from runtime.api.rpc_build import BuildRpcs
from runtime.api.stream_sources import StreamSources
from runtime.oci.mount_points import mount_points
from runtime.pods import container_exec

if TYPE_CHECKING:
    from imagesvc.store.images import OciConfig
    from imagesvc.transfer.progress import PullProgress
    from runtime.pods.node import Node
    from runtime.streaming.server import StreamingServer

SHOW_SECONDS: Final = 0.1
"""How often progress is told."""


class AdminService(BuildRpcs):
    """Images and commands beyond CRI."""

    def __init__(self, node: Node, streaming: StreamingServer) -> None:
        super().__init__(node)
        self._streaming = streaming
        self._images = node.images

    async def PullImage(self, request: admin.PullImageRequest) -> AsyncIterator[admin.ImageProgress]:
        """A pull that tells how far it is; it ends with its last client."""
        auth = _auth(request)

        async def work(watch: Callable[[PullProgress], None]) -> str:
            return await self._images.pull(request.reference, auth, watch)

        async for step in _follow(work):
            yield step

    async def PushImage(self, request: admin.PushImageRequest) -> AsyncIterator[admin.ImageProgress]:
        """An upload that tells how far it is; `image_ids` is the digest that the image has in the registry."""
        auth = _auth(request)

        async def work(watch: Callable[[PullProgress], None]) -> str:
            return await self._images.push(request.reference, request.target, auth, watch)

        async for step in _follow(work):
            yield step

    async def ImportImages(self, request: admin.ImportImagesRequest) -> admin.ImportImagesResponse:
        """Read an archive of this host."""
        _absolute(request.path)
        return admin.ImportImagesResponse(image_ids=await self._images.import_archive(request.path))

    async def ExportImages(self, request: admin.ExportImagesRequest) -> admin.ExportImagesResponse:
        """Write an archive on this host."""
        _absolute(request.path)
        await self._images.export(list(request.references), request.path, request.format or "oci")
        return admin.ExportImagesResponse()

    async def TagImage(self, request: admin.TagImageRequest) -> admin.TagImageResponse:
        """One more name for an image."""
        return admin.TagImageResponse(image_id=(await self._images.tag(request.reference, request.name)).id)

    async def UntagImage(self, request: admin.UntagImageRequest) -> admin.UntagImageResponse:
        """One name less."""
        await self._images.untag(request.name)
        return admin.UntagImageResponse()

    async def AddRootfs(self, request: admin.AddRootfsRequest) -> admin.AddRootfsResponse:
        """An image of a plain directory."""
        _absolute(request.directory)
        return admin.AddRootfsResponse(image_id=await self._images.add_rootfs(request.name, request.directory))

    async def CommitContainer(self, request: admin.CommitContainerRequest) -> admin.CommitContainerResponse:
        """An image of a container's writable layer on top of the container's image."""
        record = self._node.container(request.container_id).record
        base = self._images.image_of(record.image_id)
        if base is None:
            raise not_found(f"image {record.image_id} of container {record.id} is gone")
        if base.kind == "artifact":
            raise failed_precondition(f"{record.image_id} is an artifact, not an image")
        changes = Changes(
            config=_changed(base.config, request),
            comment=f"crisp image commit {record.id[:12]}",
            excluded=mount_points(mount.container_path for mount in record.config.mounts),
        )
        upper = str(self._node.paths.writable_layer(record.id) / "upper")
        return admin.CommitContainerResponse(image_id=await self._images.commit(base, upper, request.reference, changes))

    async def Exec(self, request: admin.ExecRequest) -> admin.ExecResponse:
        """A URL where a client can run a command; or it is run here, for nobody."""
        container, _ = container_exec.running(self._node, request.container_id)
        if not request.cmd:
            raise invalid("Exec without a command")
        changes: dict[str, Any] = {}
        if request.env:
            if any("\0" in entry or entry.find("=") < 1 for entry in request.env):
                raise invalid("a variable is not of the form NAME=VALUE")
            changes["env"] = list(request.env)
        if request.working_dir:
            _absolute(request.working_dir)
            changes["cwd"] = request.working_dir
        if request.HasField("user"):
            user = request.user
            changes["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)}
        if request.detach:
            await StreamSources(self._node).detached(container.record.id, request.cmd, tty=request.tty, changes=changes)
            return admin.ExecResponse()
        streams = {"tty": request.tty, "stdin": request.stdin, "stdout": True, "stderr": not request.tty}
        url = self._streaming.exec_url(container.record.id, request.cmd, changes=changes, **streams)
        return admin.ExecResponse(url=url)

    async def LeaveExec(self, request: admin.LeaveExecRequest) -> admin.LeaveExecResponse:
        """A command outlives its client."""
        await self._streaming.leave_exec(request.url)
        return admin.LeaveExecResponse()

    async def RemovedContainer(self, request: admin.RemovedContainerRequest) -> admin.RemovedContainerResponse:
        """How one has ended that is gone."""
        code = self._node.removed.get(request.container_id)
        if code is None:
            raise not_found(f"container {request.container_id} was removed, and how it has ended is not known")
        return admin.RemovedContainerResponse(exit_code=code)

    async def VerifyImages(self, request: admin.VerifyImagesRequest) -> admin.VerifyImagesResponse:
        """Check blobs and layers."""
        report = await self._images.verify(repair=request.repair)
        return admin.VerifyImagesResponse(
            bad_blobs=[f"{key}: {why}" for key, why in report.bad_blobs.items()],
            bad_layers=[f"{key}: {why}" for key, why in report.bad_layers.items()],
            dropped_images=report.dropped_images,
            in_use=report.in_use,
            checked=report.blobs + report.layers,
        )


def _changed(config: OciConfig, request: admin.CommitContainerRequest) -> dict[str, Any]:
    """What the request asks for, as it stands in an image's configuration; a variable replaces the one of its name."""
    names = {entry.partition("=")[0] for entry in request.env}
    kept = (entry for entry in config.env if entry.partition("=")[0] not in names)
    asked = {
        "Entrypoint": list(request.entrypoint),
        "Cmd": list(request.cmd),
        "Env": [*kept, *request.env] if request.env else [],
        "WorkingDir": request.working_dir,
        "User": request.user,
    }
    return {name: value for name, value in asked.items() if value}


def _auth(request: admin.PullImageRequest | admin.PushImageRequest) -> Auth | None:
    if not request.HasField("credentials"):
        return None
    return Auth(username=request.credentials.username, password=request.credentials.password)


def _absolute(path: str) -> None:
    if not path.startswith("/"):
        raise invalid(f"{path!r} is not an absolute path")


async def _follow(
    work: Callable[[Callable[[PullProgress], None]], Awaitable[str]],
) -> AsyncIterator[admin.ImageProgress]:
    """Run a transfer, tell its progress, and end it when the client leaves."""
    changed = asyncio.Event()
    latest: list[PullProgress] = []

    def watch(progress: PullProgress) -> None:
        latest[:] = [progress]
        changed.set()

    transfer = asyncio.ensure_future(work(watch))
    transfer.add_done_callback(lambda _done: changed.set())
    try:
        while not transfer.done():
            await changed.wait()
            changed.clear()
            for layer in latest[0].layers if latest else ():
                yield admin.ImageProgress(item=layer.digest, stage=layer.state, current=layer.current, total=layer.size)
            await asyncio.wait((transfer,), timeout=SHOW_SECONDS)
        yield admin.ImageProgress(done=True, image_ids=[await transfer])
    finally:
        transfer.cancel()
