"""Exporting images: an OCI layout (OCI image-layout.md) or the format of `docker save`, as one tar.

The archive is written beside its name and renamed when it is whole and on disk.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

from imagesvc.disk_errors import disk_error
from imagesvc.references import is_step
from imagesvc.store.content import ContentStore, digest_of
from imagesvc.store.images import Image
from imagesvc.store.layers import LayerStore
from imagesvc.store.materials import Materials, blob_name, manifest_of
from imagesvc.worker.pool import JobFailed, WorkerPool
from proto.errors import Code, CrispError, failed_precondition, invalid

FORMATS = ("oci", "docker")


class Exporter:
    """Writes archives of images on this node."""

    def __init__(self, store: ContentStore, layers: LayerStore, workers: WorkerPool) -> None:
        self._store = store
        self._layers = layers
        self._workers = workers

    async def export(self, images: Sequence[Image], path: str, form: str, materials: Materials) -> None:
        """Writes the images into a new file.

        Raises:
            CrispError: ALREADY_EXISTS for a file that is there; FAILED_PRECONDITION for a layer that cannot be made again.
        """
        if form not in FORMATS:
            raise invalid(f"archive format {form!r} is none of {', '.join(FORMATS)}")
        if os.path.exists(path):
            raise CrispError(Code.ALREADY_EXISTS, f"{path} exists already")
        members = await (self._oci(images, materials) if form == "oci" else self._docker(images))
        partial = path + ".partial"
        try:
            await self._workers.run({"job": "export", "output": partial, "members": members})
            os.rename(partial, path)
        except JobFailed as failure:
            if failure.kind == "os":
                error = OSError(failure.errno, failure.message, failure.path)
                raise disk_error(error, os.path.dirname(path), "exporting images") from None
            raise CrispError(Code.ABORTED, f"exporting images: {failure.message}") from None
        finally:
            if os.path.exists(partial):
                os.unlink(partial)

    async def _oci(self, images: Sequence[Image], materials: Materials) -> list[dict[str, Any]]:
        blobs: dict[str, dict[str, Any]] = {}
        entries = []
        for image in images:
            made = [await materials.layer(layer) for layer in image.layers]
            for material in made:
                digest = material.descriptor.digest
                blobs[digest] = {"name": blob_name(digest), "file": material.path}
            config = await asyncio.to_thread(self._store.read, image.id)
            blobs[image.id] = {"name": blob_name(image.id), "file": self._store.path(image.id)}
            original = await self._original(image)
            manifest = manifest_of(image, [material.descriptor for material in made], len(config), original)
            digest = digest_of(manifest)
            blobs[digest] = {"name": blob_name(digest), "text": manifest.decode()}
            media_type = json.loads(manifest).get("mediaType")
            for name in _names(image) or [""]:
                entry: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": len(manifest)}
                if name:
                    entry["annotations"] = {
                        "org.opencontainers.image.ref.name": name,
                        "io.containerd.image.name": name,
                    }
                entries.append(entry)
        index = {"schemaVersion": 2, "manifests": entries}
        return [
            {"name": "oci-layout", "text": '{"imageLayoutVersion":"1.0.0"}'},
            {"name": "index.json", "text": json.dumps(index)},
            *blobs.values(),
        ]

    async def _original(self, image: Image) -> bytes | None:
        if not self._store.has(image.manifest):
            return None
        return await asyncio.to_thread(self._store.read, image.manifest)

    async def _docker(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        """Layers are plain tars here, so each is rebuilt straight into the archive."""
        files: dict[str, dict[str, Any]] = {}
        entries = []
        for image in images:
            names = []
            for ref in image.layers:
                layer = self._layers.get(ref.key)
                if layer is None or not layer.info.skeleton:
                    raise failed_precondition(f"layer {ref.diff_id} of {image.id} cannot be put together again")
                name = ref.diff_id.partition(":")[2] + ".tar"
                files[name] = {"name": name, "layer": layer.path, "size": layer.info.inflated}
                names.append(name)
            config = image.id.partition(":")[2] + ".json"
            files[config] = {"name": config, "file": self._store.path(image.id)}
            entries.append({"Config": config, "RepoTags": _names(image), "Layers": names})
        return [*files.values(), {"name": "manifest.json", "text": json.dumps(entries)}]


def _names(image: Image) -> list[str]:
    """What an archive calls it: a build's step means nothing on another node."""
    return [name for name in image.repo_tags if not is_step(name)]
