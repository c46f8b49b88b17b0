"""Pushing an image: blobs that the registry lacks, then the manifest (distribution specification 1.1, "Pushing").

For each blob: HEAD; else a mount from a repository of the same registry that this image came from; else an upload in chunks,
each of which is resumed where the registry says that it stands. Layers are made only when they are really needed.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from imagesvc.limits import MIB
from imagesvc.manifests import Descriptor, parse_manifest
from imagesvc.media_types import OCI_CONFIG
from imagesvc.references import Reference, try_parse
from imagesvc.registry import auth
from imagesvc.registry.access import Access
from imagesvc.registry.client import RegistryClient, backoff, failure_of, joined, with_retries
from imagesvc.registry.endpoint import PUSH
from imagesvc.registry.errors import Kind, RegistryFailure, give_up
from imagesvc.store.content import ContentStore, digest_of
from imagesvc.store.images import Image, LayerRef
from imagesvc.store.materials import Materials, manifest_of
from imagesvc.transfer.progress import LayerProgress, PullProgress

if TYPE_CHECKING:
    import aiohttp

_CHUNK = 16 * MIB
_PARALLEL = 3
_ATTEMPTS = 5
_FIRST_PAUSE = 0.25
"""Seconds."""
_LAST_BYTE = re.compile("[1-9][0-9]{0,18}")
"""Of an upload's Range: `0-0` is said of one that has nothing."""


class Pusher:
    """Uploads images of this node."""

    def __init__(self, client: RegistryClient, store: ContentStore) -> None:
        self._client = client
        self._store = store

    async def push(
        self,
        image: Image,
        target: Reference,
        accesses: Sequence[Access],
        materials: Materials,
        progress: PullProgress,
    ) -> str:
        """Pushes to the first endpoint that may be pushed to; returns the digest of the manifest there."""
        access = next((access for access in accesses if PUSH in access.endpoint.capabilities), None)
        if access is None:
            raise give_up(f"pushing {target}", [])
        try:
            upload = _Upload(self._client, access, _same_registry(image, target))
            return await self._push(image, target, upload, materials, progress)
        except RegistryFailure as failure:
            raise give_up(f"pushing {target}", [(str(access), failure)]) from None

    async def _push(
        self, image: Image, target: Reference, upload: _Upload, materials: Materials, progress: PullProgress
    ) -> str:
        progress.state = "pushing"
        progress.layers = [LayerProgress(layer.digest or layer.diff_id, layer.size) for layer in image.layers]
        slots = asyncio.Semaphore(_PARALLEL)

        async def layer(ref: LayerRef, shown: LayerProgress) -> Descriptor:
            async with slots:
                return await self._layer(ref, upload, materials, shown, progress)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(layer(r, p)) for r, p in zip(image.layers, progress.layers, strict=True)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        config = await asyncio.to_thread(self._store.read, image.id)
        described = Descriptor(OCI_CONFIG, image.id, len(config))
        if not await upload.has(image.id):
            await upload.send(described, self._store.path(image.id), lambda _sent: None)
        original = await asyncio.to_thread(self._store.read, image.manifest) if self._store.has(image.manifest) else None
        manifest = manifest_of(image, [task.result() for task in tasks], len(config), original)
        await upload.manifest(target.tag or digest_of(manifest), manifest)
        progress.state = "done"
        progress.changed()
        return digest_of(manifest)

    async def _layer(
        self, ref: LayerRef, upload: _Upload, materials: Materials, shown: LayerProgress, progress: PullProgress
    ) -> Descriptor:
        def show(sent: int) -> None:
            shown.downloaded = sent
            shown.state = "uploading"
            progress.changed()

        if ref.digest and ref.digest != ref.diff_id and (await upload.has(ref.digest) or await upload.mount(ref.digest)):
            shown.state = "exists"
            show(ref.size)
            return Descriptor(ref.media_type, ref.digest, ref.size)
        material = await materials.layer(ref)
        shown.size = material.descriptor.size
        if not await upload.has(material.descriptor.digest):
            await upload.send(material.descriptor, material.path, show)
        show(material.descriptor.size)
        return material.descriptor


class _Upload:
    """The requests of one push."""

    def __init__(self, client: RegistryClient, access: Access, repositories: Sequence[str]) -> None:
        self._client = client
        self._access = access
        self._endpoint = endpoint = access.endpoint
        self._repositories = repositories
        self._scope = auth.push_scope(endpoint.repository)

    def _request(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        body: Callable[[], Any] | None = None,
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._client.request(self._access, method, url, self._scope, headers, body)

    async def has(self, digest: str) -> bool:
        """Whether the repository has the blob."""

        async def once() -> bool:
            async with self._request("HEAD", self._endpoint.url("blobs", digest)) as reply:
                if reply.status in (200, 404):
                    return reply.status == 200
                raise await failure_of(reply)

        return await with_retries(once, self._access.budget)

    async def mount(self, digest: str) -> bool:
        """Asks the registry to take the blob over from a repository that the image came from."""
        for repository in self._repositories:
            url = f"{self._endpoint.url('blobs', 'uploads/')}?mount={digest}&from={quote(repository, safe='')}"
            async with self._request("POST", url) as reply:
                if reply.status == 201:
                    return True
                if reply.status == 202:
                    await self._cancel(self._location(reply))
        return False

    async def _cancel(self, location: str) -> None:
        """An upload that a refused mount has opened; registries drop it in time if this fails."""
        async with self._request("DELETE", location):
            pass

    async def send(self, descriptor: Descriptor, path: str, show: Callable[[int], None]) -> None:
        """Uploads a blob in chunks."""
        location = await with_retries(self._begin, self._access.budget)
        sent = 0
        barren = 0
        while sent < descriptor.size:
            try:
                location, stands = await self._chunk(location, path, sent, descriptor.size)
            except RegistryFailure as failure:
                barren += 1
                if failure.retry_after is None or barren >= _ATTEMPTS:
                    raise
                await asyncio.sleep(backoff(_FIRST_PAUSE * 2**barren, failure.retry_after))
                location, stands = await self._status(location, sent)
            barren = 0 if stands > sent else barren
            sent = stands
            show(sent)
        separator = "&" if "?" in location else "?"
        async with self._request("PUT", f"{location}{separator}digest={quote(descriptor.digest)}") as reply:
            if reply.status not in (201, 204):
                raise await failure_of(reply)

    async def _begin(self) -> str:
        async with self._request("POST", self._endpoint.url("blobs", "uploads/")) as reply:
            if reply.status != 202:
                raise await failure_of(reply)
            return self._location(reply)

    async def _chunk(self, location: str, path: str, start: int, size: int) -> tuple[str, int]:
        """Sends one chunk; returns where to go on and how much the registry has."""
        data = await asyncio.to_thread(_read, path, start, min(_CHUNK, size - start))
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{start}-{start + len(data) - 1}",
        }
        async with self._request("PATCH", location, headers, lambda: io.BytesIO(data)) as reply:
            if reply.status not in (202, 204):
                raise await failure_of(reply)
            return self._location(reply), start + len(data)

    async def _status(self, location: str, sent: int) -> tuple[str, int]:
        """Where an interrupted upload stands, by the registry's `Range: 0-N`."""
        async with self._request("GET", location) as reply:
            if reply.status != 204:
                raise await failure_of(reply)
            last = reply.headers.get("Range", "").rpartition("-")[2]
            return self._location(reply), int(last) + 1 if _LAST_BYTE.fullmatch(last) else 0

    async def manifest(self, name: str, data: bytes) -> None:
        """Puts the manifest under its tag or digest."""
        media_type = parse_manifest(data, digest_of(data)).media_type

        async def once() -> None:
            headers = {"Content-Type": media_type}
            async with self._request(
                "PUT", self._endpoint.url("manifests", name), headers, lambda: io.BytesIO(data)
            ) as reply:
                if reply.status not in (201, 202):
                    raise await failure_of(reply)

        await with_retries(once, self._access.budget)

    def _location(self, reply: aiohttp.ClientResponse) -> str:
        location = reply.headers.get("Location", "")
        if not location:
            raise RegistryFailure(Kind.BROKEN, "it names no location for the upload")
        self._access.budget.touch()
        return joined(str(reply.url), location)


def _read(path: str, start: int, length: int) -> bytes:
    with open(path, "rb") as stream:
        return os.pread(stream.fileno(), length, start)


def _same_registry(image: Image, target: Reference) -> list[str]:
    """Repositories of the target's registry that this image is known under."""
    references = [try_parse(name) for name in (*image.repo_digests, *image.repo_tags)]
    paths = [r.path for r in references if r is not None and r.domain == target.domain and r.path != target.path]
    return list(dict.fromkeys(paths))
