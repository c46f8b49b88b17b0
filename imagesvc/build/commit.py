"""Making an image of what a container or a build's step has written: the upper directory becomes a layer on its image.

    pack       a worker turns the directory into a compressed layer (pack.py)
    describe   configuration and manifest: the base's, with one layer, its history and the changes asked for
    take in    as an import: unpack, sync, record; the new blob is kept, for no registry has it

A base that is a plain directory (add-rootfs) has no layer; it is packed as the first one. A build can begin with nothing,
and can make an image that has another configuration and no layer more.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from imagesvc import manifests
from imagesvc.build.importing import Place, StoredBlob
from imagesvc.manifests import Descriptor, Manifest
from imagesvc.media_types import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST
from imagesvc.references import Reference, is_step
from imagesvc.store.content import ContentStore, digest_of
from imagesvc.store.images import ARTIFACT, ROOTFS, Image
from imagesvc.store.materials import MadeBlob, Materials, run_blob_job
from imagesvc.transfer.archived import ArchivedImage
from imagesvc.transfer.progress import PullProgress
from imagesvc.transfer.pull import Puller
from imagesvc.worker.pool import WorkerPool
from proto.errors import failed_precondition, invalid


@dataclass(frozen=True)
class Changes:
    """What the new image shall have otherwise than its base. None leaves a field as it is."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration document's `config`; those that are not named stay, also what we know nothing of."""
    author: str = ""
    comment: str = ""
    created: int | None = None
    """Seconds since the epoch; also the newest time that a file of the layer gets. None for now, and times as they are."""
    excluded: Sequence[str] = field(default_factory=tuple)
    """Paths of the container that are left out, such as mount points; with directories that were made for them alone."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """Fields that replace those of the base's configuration document; what says what its layers are is not among them."""
    history: Sequence[Mapping[str, Any]] = ()
    """Lines for its history in place of one for each layer; each gets its time, the last is the layer's."""


class Committer:
    """Makes one image. `materials` removes the scratch files of what fails."""

    def __init__(
        self, store: ContentStore, workers: WorkerPool, puller: Puller, executor: Executor, materials: Materials
    ) -> None:
        self._store = store
        self._workers = workers
        self._puller = puller
        self._executor = executor
        self._materials = materials

    async def commit(self, base: Image | None, upper: str, references: Sequence[Reference], changes: Changes) -> str:
        """Packs and records; returns the new image's id. The container may run meanwhile: what it changes just then may be
        in the image or not. Without a base there is nothing below, without `upper` no new layer."""
        check_base(base, references)
        directories = [base.directory] if base is not None and base.kind == ROOTFS else []
        made = [await self._pack(directory, changes, upper=False) for directory in directories]
        made += [await self._pack(upper, changes, upper=True)] if upper else []
        raw = b"{}" if base is None else await asyncio.to_thread(self._store.read, base.id)
        image = describe(base, raw, [blob for blob, _path in made], references, changes, time.time())
        for blob, path in made:
            await asyncio.to_thread(self._store.adopt, path, blob.digest)
        paths = {blob.digest: self._store.staged_path(blob.digest) for blob, _path in made}

        @asynccontextmanager
        async def hold(descriptor: Descriptor) -> AsyncIterator[StoredBlob]:
            yield StoredBlob(Place(paths[descriptor.digest], 0, descriptor.size), descriptor, self._executor)

        return await self._puller.take_in(image, hold, PullProgress(", ".join(map(str, references))), list(paths))

    async def _pack(self, directory: str, changes: Changes, *, upper: bool) -> tuple[MadeBlob, str]:
        output = self._materials.scratch()
        newest = None if changes.created is None else changes.created * 1_000_000_000
        request = {
            "job": "pack",
            "directory": directory,
            "upper": upper,
            "output": output,
            "excluded": list(changes.excluded),
            "newest": newest,
        }
        return await run_blob_job(self._workers, request), output


def check_base(base: Image | None, references: Sequence[Reference]) -> None:
    """Raises INVALID_ARGUMENT or FAILED_PRECONDITION where no image can be made."""
    for reference in references:
        if reference.digest:
            raise invalid(f"{reference} names a digest; an image is committed under a tag")
    if base is not None and base.kind == ARTIFACT:
        raise failed_precondition(f"{base.id} is an artifact, and no image to build upon")


def describe(
    base: Image | None,
    base_config: bytes,
    blobs: Sequence[MadeBlob],
    references: Sequence[Reference],
    changes: Changes,
    now: float,
) -> ArchivedImage:
    """The documents of the new image. `blobs` are the new layers, bottom first."""
    created = changes.created if changes.created is not None else now
    stamp = datetime.datetime.fromtimestamp(created, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document: dict[str, Any] = json.loads(base_config)
    diff_ids = [*(document.get("rootfs") or {}).get("diff_ids", ()), *(blob.diff_id for blob in blobs)]
    document["created"] = stamp
    if changes.author:
        document["author"] = changes.author
    if changes.config:
        document["config"] = {**(document.get("config") or {}), **changes.config}
    history = list(document.get("history") or _blank_history(base))
    document |= changes.document
    for name in [name for name in document if name.startswith("crisp.")]:
        del document[name]
    document["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    document["history"] = history + _history(base, changes, stamp, len(blobs))
    config = json.dumps(document, separators=(",", ":")).encode()
    layers = [*_base_layers(base), *(Descriptor(OCI_LAYER_GZIP, blob.digest, blob.size) for blob in blobs)]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [layer.to_json() for layer in layers],
        },
        separators=(",", ":"),
    ).encode()
    digest = digest_of(manifest)
    parsed = manifests.parse_manifest(manifest, digest)
    assert isinstance(parsed, Manifest)
    documents: Mapping[str, bytes] = {digest: manifest, digest_of(config): config}
    named = not all(is_step(str(reference)) for reference in references)  # what no registry is asked for needs no digest
    return ArchivedImage(tuple(references), digest, digest, parsed, config, documents, from_registry=named)


def _history(base: Image | None, changes: Changes, stamp: str, layers: int) -> list[dict[str, Any]]:
    """One line for each layer, as the specification wants; others say that theirs is empty."""
    if not changes.history:
        line = {"created_by": "crisp image commit", "author": changes.author, "comment": changes.comment}
        return [{"created": stamp, **{k: v for k, v in line.items() if v}}] * layers
    plain = (
        [{"created": stamp, "created_by": "crisp: a plain directory"}] if base is not None and base.kind == ROOTFS else []
    )
    lines = [{"created": stamp, **line, "empty_layer": True} for line in changes.history]
    for line in lines[-1:] if layers > len(plain) else []:
        del line["empty_layer"]
    return plain + lines


def _base_layers(base: Image | None) -> list[Descriptor]:
    """The base's layers as its manifest has them; a layer that never was a blob is described by its diff id."""
    if base is None or base.kind == ROOTFS:
        return []
    return [Descriptor(layer.media_type or OCI_LAYER, layer.digest or layer.diff_id, layer.size) for layer in base.layers]


def _blank_history(base: Image | None) -> list[dict[str, str]]:
    """One line for each layer, where the base has no history: the specification wants none or one for each."""
    return [{"created_by": "unknown"} for _layer in (base.layers if base is not None else ())]
