"""The compressed layers of an image, for those who send it elsewhere: kept blobs as they are, others compressed again.

A layer whose blob is not on this node is put together from its directory and skeleton. Its diff id, and so the image's id,
stay; its digest need not be what it was, since compressors differ, and then the manifest is written anew.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from imagesvc.disk_errors import disk_error
from imagesvc.manifests import Descriptor
from imagesvc.media_types import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from imagesvc.store.content import ContentStore
from imagesvc.store.images import IMAGE, Image, LayerRef
from imagesvc.store.layers import LayerStore
from imagesvc.worker.pool import JobFailed, WorkerPool
from proto.errors import Code, CrispError, failed_precondition


@dataclass(frozen=True)
class Material:
    """One blob and the file that has it."""

    descriptor: Descriptor
    path: str


class Materials:
    """Finds or makes the blobs of images. `close` removes what was made."""

    def __init__(self, store: ContentStore, layers: LayerStore, workers: WorkerPool, scratch_dir: str) -> None:
        self._store = store
        self._layers = layers
        self._workers = workers
        self._scratch_dir = scratch_dir
        self._made: list[str] = []

    def close(self) -> None:
        """Removes scratch files."""
        for path in self._made:
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue

    def scratch(self) -> str:
        """The name of a new scratch file."""
        path = os.path.join(self._scratch_dir, f"made-{secrets.token_hex(8)}")
        self._made.append(path)
        return path

    def kept(self, layer: LayerRef) -> Material | None:
        """The layer's own blob, if it is on this node."""
        if not layer.digest or not self._store.has(layer.digest):
            return None
        descriptor = Descriptor(layer.media_type, layer.digest, layer.size)
        return Material(descriptor, self._store.path(layer.digest))

    async def layer(self, ref: LayerRef) -> Material:
        """A layer's blob, made if it is not here.

        Raises:
            CrispError: FAILED_PRECONDITION where it cannot be made; ABORTED where the directory is not what it was.
        """
        material = self.kept(ref)
        if material is not None:
            return material
        directory = self._layers.get(ref.key)
        if directory is None or not directory.info.skeleton:
            raise failed_precondition(f"layer {ref.diff_id} cannot be put together again: pull its image with keep_blobs")
        output = self.scratch()
        made = await run_blob_job(self._workers, {"job": "rebuild", "layer": directory.path, "output": output})
        if made.diff_id != ref.diff_id:
            raise CrispError(
                Code.ABORTED, f"layer {ref.diff_id} has changed on disk (it makes {made.diff_id}): try `image verify`"
            )
        return Material(Descriptor(OCI_LAYER_GZIP, made.digest, made.size), output)


@dataclass(frozen=True)
class MadeBlob:
    """What a job says of the blob that it wrote."""

    digest: str
    diff_id: str
    size: int


async def run_blob_job(workers: WorkerPool, request: Mapping[str, Any]) -> MadeBlob:
    """Runs a job that writes a compressed layer into `output`; the file is removed if that fails."""
    output = str(request["output"])
    try:
        return MadeBlob(**await workers.run(request))
    except JobFailed as failure:
        if os.path.exists(output):
            os.unlink(output)
        if failure.kind == "os":
            error = OSError(failure.errno, failure.message, failure.path)
            raise disk_error(error, os.path.dirname(output), "writing a layer") from None
        raise CrispError(Code.ABORTED, failure.message) from None


def manifest_of(image: Image, layers: list[Descriptor], config_size: int, original: bytes | None) -> bytes:
    """The manifest that goes with these layer blobs: the image's own where they are its own, else a new one."""
    own = [layer.digest for layer in image.layers]
    if original is not None and own == [layer.digest for layer in layers]:
        return original
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": image.id, "size": config_size},
        "layers": [replace(layer, platform={}).to_json() for layer in layers],
    }
    if image.annotations:
        document["annotations"] = dict(image.annotations)
    return json.dumps(document, separators=(",", ":")).encode()


def require_image(image: Image | None, name: str) -> Image:
    """The image, if it is one that has layers to send; NOT_FOUND or FAILED_PRECONDITION otherwise."""
    if image is None:
        raise CrispError(Code.NOT_FOUND, f"image {name} is not on this node")
    if image.kind != IMAGE:
        raise failed_precondition(
            f"{name} is of the kind {image.kind!r}; only images with layers can be sent: commit one first"
        )
    return image


def blob_name(digest: str) -> str:
    """Where an OCI layout has a blob."""
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"
