"""Pulling: reference -> manifest -> layers side by side -> one sync -> record.

    resolve      HEAD or GET at each endpoint in turn, always with the caller's credentials
    fetch        each layer: network -> digest -> inflate -> diff id -> its own directory; what is here is not fetched
    publish      one sync of the file system, then blobs and layers get their names (store/content.py, layers.py)
    record       the image and its names, durable

Killed before `record`, a pull leaves what the next start removes, and partial downloads that the next pull resumes. A
second pull of the same reference with the same credentials joins the first (service.py); pulls of different images of one
repository join in each layer that they share. What of an image is here already, for others, has to be proved (proofs.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

import structlog

from imagesvc import manifests, media_types
from imagesvc.config import ImageConfig
from imagesvc.disk_errors import disk_error
from imagesvc.limits import MAX_CONFIG_BYTES
from imagesvc.manifests import Descriptor, ImageConfigDocument, Manifest
from imagesvc.platforms import choose
from imagesvc.references import Reference
from imagesvc.registry.access import Access, reordered
from imagesvc.registry.client import ManifestReply, RegistryClient
from imagesvc.registry.endpoint import PULL, RESOLVE
from imagesvc.registry.errors import Kind, RegistryFailure, give_up
from imagesvc.store import images
from imagesvc.store.content import ContentStore, digest_of
from imagesvc.store.images import Image, ImageIndex, LayerRef, OciConfig
from imagesvc.store.layers import Layer, LayerStore
from imagesvc.transfer.archived import ArchivedImage
from imagesvc.transfer.artifacts import unpack_artifact
from imagesvc.transfer.downloads import Download, Downloads
from imagesvc.transfer.joins import Joins
from imagesvc.transfer.layer_work import Blobs, HoldBlob, LayerWork
from imagesvc.transfer.progress import PullProgress
from imagesvc.transfer.proofs import Proofs
from imagesvc.transfer.sources import Source
from imagesvc.transfer.unpacking import Unpacker
from kernel.failpoints import failpoint
from proto.errors import Code, CrispError, invalid

log = structlog.get_logger()


@dataclass(frozen=True)
class _Resolved:
    """A manifest for this platform, with the documents on the way to it, and the source that had it."""

    source: Source
    top: str
    digest: str
    manifest: Manifest
    documents: dict[str, bytes]


class Puller:
    """What every pull of a node shares."""

    def __init__(
        self,
        config: ImageConfig,
        client: RegistryClient,
        store: ContentStore,
        layers: LayerStore,
        downloads: Downloads,
        unpacker: Unpacker,
        index: ImageIndex,
        joins: Joins,
        proofs: Proofs,
    ) -> None:
        self._proofs = proofs
        self._config = config
        self._client = client
        self._store = store
        self._layers = layers
        self._downloads = downloads
        self._unpacker = unpacker
        self._index = index
        self._joins = joins

    async def pull(
        self,
        reference: Reference,
        accesses: Sequence[Access],
        fingerprint: str,
        progress: PullProgress,
    ) -> Image:
        """Pulls one image and returns its record.

        Raises:
            CrispError: as registry_errors.give_up says; ABORTED for content that is not what its digest says;
                INVALID_ARGUMENT for documents or layers that are malformed; RESOURCE_EXHAUSTED for a full disk.
        """
        known = self._index.resolve(str(reference))
        try:
            top, source, first = await self._top(reference, accesses, fingerprint, known)
        except CrispError as error:
            unavailable = error.message.startswith("RegistryUnavailable")
            if unavailable and known is not None and reference.digest and fingerprint in known.checked:
                log.warning("registry is down; the image is here and was checked", reference=str(reference))
                return known
            raise
        present = self._present(reference.with_digest(top))
        if present is not None:
            return await self._name(present, self._named(present, reference, top, fingerprint))
        resolved = await self._resolve(source, top, first)
        progress.state = "fetching"

        def named(image: Image) -> Image:
            return self._named(image, reference, top, fingerprint)

        if resolved.manifest.is_image:
            image = await self._pull_image(resolved, named, progress)
        else:
            image = await self._pull_artifact(resolved, named, progress)
        progress.state = "done"
        progress.changed()
        return image

    def _present(self, name: str) -> Image | None:
        """The image that this repository has given under this digest before, if all of it is still here."""
        image = self._index.resolve(name)
        return image if image is not None and all(self._layers.get(layer.key) for layer in image.layers) else None

    async def _name(self, present: Image, named: Image) -> Image:
        """Records the names of an image that is here. One that is removed at the same moment comes back whole."""
        self._layers.want(present.diff_ids)
        try:
            with self._store.keeping([present.id, present.manifest, present.top, *(x.digest for x in present.layers)]):
                return await self._index.add(named)
        finally:
            self._layers.unwant(present.diff_ids)

    def _named(self, image: Image, reference: Reference, top: str, fingerprint: str) -> Image:
        """The image with the names that this pull gives it."""
        return replace(
            image,
            repo_tags=(str(reference),) if reference.tag else (),
            repo_digests=(reference.with_digest(top),),
            checked=(*(f for f in image.checked if f != fingerprint), fingerprint),
        )

    async def _top(
        self, reference: Reference, accesses: Sequence[Access], fingerprint: str, known: Image | None
    ) -> tuple[str, Source, ManifestReply | None]:
        """The digest that the reference means now, and the endpoints to fetch from, the one that knew it first.

        HEAD where the image is probably here already, else GET, whose document is returned as well.
        """
        failures: list[tuple[str, RegistryFailure]] = []
        for access in accesses:
            if (PULL if reference.digest else RESOLVE) not in access.endpoint.capabilities:
                continue
            try:
                reply = await self._client.manifest(access, reference.object, head=known is not None)
                if not reply.body and not reply.digest:
                    reply = await self._client.manifest(access, reference.object, head=False)
                digest = _checked_digest(reply, reference.digest)
            except RegistryFailure as failure:
                failures.append((str(access), failure))
                continue
            slots = asyncio.Semaphore(self._config.parallel_downloads)
            pullable = [other for other in reordered(access, accesses) if PULL in other.endpoint.capabilities]
            source = Source(reference, pullable, slots, fingerprint)
            return digest, source, reply if reply.body else None
        raise give_up(str(reference), failures)

    async def _resolve(self, source: Source, top: str, first: ManifestReply | None) -> _Resolved:
        """From the top-level digest down to the manifest for this platform."""
        documents: dict[str, bytes] = {}
        reply = first or await self._document(source, top)
        documents[top] = reply.body
        document = manifests.parse_manifest(reply.body, top, reply.media_type, self._config.limits)
        digest = top
        depth = 0
        while isinstance(document, manifests.Index):
            depth += 1
            if depth > 3:
                raise invalid(f"index {top} nests indexes more than three deep")
            entry = choose(document.manifests, self._config.wanted_platform(), str(source.reference))
            digest = entry.digest
            reply = await self._document(source, digest)
            documents[digest] = reply.body
            document = manifests.parse_manifest(reply.body, digest, entry.media_type, self._config.limits)
        return _Resolved(source, top, digest, document, documents)

    async def _document(self, source: Source, digest: str) -> ManifestReply:
        """A manifest by digest, from this node if the repository has given it before, or the first endpoint that has it."""
        if self._store.has(digest) and self._proofs.has_document(source.reference, digest):
            return ManifestReply(digest, "", await asyncio.to_thread(self._store.read, digest))
        failures: list[tuple[str, RegistryFailure]] = []
        for access in source.accesses:
            try:
                reply = await self._client.manifest(access, digest, head=False)
                _checked_digest(reply, digest)
            except RegistryFailure as failure:
                failures.append((str(access), failure))
            else:
                return reply
        raise give_up(f"manifest {digest} of {source.reference}", failures)

    async def _config_blob(self, source: Source, descriptor: Descriptor) -> bytes:
        """The image configuration, whole in memory."""
        if self._store.has(descriptor.digest) and self._proofs.has_document(source.reference, descriptor.digest):
            return await asyncio.to_thread(self._store.read, descriptor.digest)
        if descriptor.size > MAX_CONFIG_BYTES:
            raise CrispError(
                Code.RESOURCE_EXHAUSTED,
                f"image configuration {descriptor.digest} has {descriptor.size} bytes; at most {MAX_CONFIG_BYTES} are read",
            )
        async with self._downloads.hold(descriptor, source) as download:
            await asyncio.shield(download.done)
            return await asyncio.to_thread(_read_file, download.path)

    async def _pull_image(self, resolved: _Resolved, named: Callable[[Image], Image], progress: PullProgress) -> Image:
        manifest = resolved.manifest
        raw = await self._config_blob(resolved.source, manifest.config)
        config = manifests.parse_config(raw, manifest.config.digest)
        _check_layers(resolved.digest, manifest, config)
        for layer in manifest.layers:
            if media_types.is_encrypted(layer.media_type):
                raise CrispError(Code.UNIMPLEMENTED, f"layer {layer.digest} is encrypted, which is not supported")
        documents = {**resolved.documents, manifest.config.digest: raw}
        source = resolved.source

        def hold(descriptor: Descriptor) -> AbstractAsyncContextManager[Download]:
            return self._downloads.hold(descriptor, source)

        async def may_have(descriptor: Descriptor, diff_id: str) -> bool:
            return await self._proofs.has_layer(source, descriptor, diff_id)

        def came(descriptor: Descriptor, diff_id: str) -> None:
            self._proofs.remember(source, descriptor.digest, diff_id)

        mark = self._layers.mark()
        work = LayerWork(
            self._layers,
            self._unpacker,
            self._joins,
            Blobs(hold, may_have, came),
            progress,
            parallel=self._config.unpacks_at_once(),
            keep_blobs=self._config.keep_blobs,
        )
        async with work:
            layers = await work.all(manifest.layers, config.diff_ids)
            blobs = [blob for blob in work.incoming if isinstance(blob, Download)]
            image = _image(manifest, resolved.digest, resolved.top, config, layers, documents)
            return await self._record(named(image), layers, documents, progress, mark, downloads=blobs)

    async def take_in(
        self, archived: ArchivedImage, hold: HoldBlob, progress: PullProgress, blobs: Sequence[str] = ()
    ) -> str:
        """Stores an image of an archive under the names that it has there; returns its id.

        `blobs` are staged layer blobs to be kept.
        """
        manifest = archived.manifest
        config = manifests.parse_config(archived.config, manifest.config.digest)
        _check_layers(archived.digest, manifest, config)
        mark = self._layers.mark()
        parallel = self._config.unpacks_at_once()
        work = LayerWork(self._layers, self._unpacker, self._joins, Blobs(hold), progress, parallel=parallel)
        async with work:
            layers = await work.all(manifest.layers, config.diff_ids)
            image = _image(manifest, archived.digest, archived.top, config, layers, archived.documents)
            named = replace(
                image,
                repo_tags=tuple(str(name) for name in archived.names if name.tag),
                repo_digests=tuple(name.with_digest(archived.top) for name in archived.names)
                if archived.from_registry
                else (),
            )
            return (await self._record(named, layers, archived.documents, progress, mark, blobs=blobs)).id

    async def _pull_artifact(self, resolved: _Resolved, named: Callable[[Image], Image], progress: PullProgress) -> Image:
        mark = self._layers.mark()
        self._layers.want([resolved.digest])
        try:
            layer = await unpack_artifact(
                resolved.digest, resolved.manifest, resolved.source, self._downloads, self._layers, progress
            )
            documents = resolved.documents
            image = Image(
                id=resolved.digest,
                kind=images.ARTIFACT,
                repo_tags=(),
                repo_digests=(),
                size=layer.info.bytes + sum(map(len, documents.values())),
                config=OciConfig(),
                pinned=False,
                layers=(LayerRef(layer.info.key, layer.info.diff_id),),
                manifest=resolved.digest,
                top=resolved.top,
                annotations=resolved.manifest.annotations,
            )
            return await self._record(named(image), [layer], documents, progress, mark)
        finally:
            self._layers.unwant([resolved.digest])

    async def _record(
        self,
        image: Image,
        layers: Sequence[Layer],
        documents: Mapping[str, bytes],
        progress: PullProgress,
        mark: int,
        *,
        downloads: Sequence[Download] = (),
        blobs: Sequence[str] = (),
    ) -> Image:
        """Makes everything durable, then the record. `downloads` and `blobs` are layer blobs that are kept; `mark` is from
        before the first byte (LayerStore.mark)."""
        progress.state = "syncing"
        progress.changed()
        staged = {digest: self._store.staged_path(digest) for digest in blobs}
        staged |= {download.digest: download.path for download in downloads}
        made: list[str] = []

        async def record() -> Image:
            for download in downloads:
                download.published = True
            made.clear()
            failpoint("image.published")
            return await self._index.add(image)

        with self._store.keeping([*documents, *staged]):
            try:
                for digest, data in documents.items():
                    if not self._store.has(digest):
                        staged[digest] = await self._store.put(digest, data)
                        made.append(staged[digest])
                failpoint("image.unpacked")
                added = await self._layers.publish(layers, mark, lambda: self._store.publish(staged), record)
            except BaseException:
                for path in made:
                    self._store.discard(path)
                raise
            failpoint("image.recorded")
            return added


def _check_layers(digest: str, manifest: Manifest, config: ImageConfigDocument) -> None:
    if len(config.diff_ids) != len(manifest.layers):
        raise invalid(f"manifest {digest} has {len(manifest.layers)} layers, its configuration {len(config.diff_ids)}")


def _checked_digest(reply: ManifestReply, wanted: str) -> str:
    """The digest of a reply, checked against its body and against what was asked for."""
    if reply.body:
        actual = digest_of(reply.body, wanted or "sha256:")
        if wanted and actual != wanted:
            raise RegistryFailure(Kind.BROKEN, f"it sent a manifest with the digest {actual} instead of {wanted}")
        return actual
    digest = reply.digest or wanted
    if wanted and digest != wanted:
        raise RegistryFailure(Kind.BROKEN, f"it answers for {digest} instead of {wanted}")
    return digest


def _image(
    manifest: Manifest,
    digest: str,
    top: str,
    config: ImageConfigDocument,
    layers: Sequence[Layer],
    documents: Mapping[str, bytes],
) -> Image:
    refs = tuple(
        LayerRef(layer.info.key, layer.info.diff_id, blob.digest, blob.size, blob.media_type)
        for layer, blob in zip(layers, manifest.layers, strict=True)
    )
    unique = {layer.info.key: layer.info.bytes for layer in layers}
    return Image(
        id=manifest.config.digest,
        kind=images.IMAGE,
        repo_tags=(),
        repo_digests=(),
        size=sum(unique.values()) + sum(map(len, documents.values())),
        config=OciConfig.from_json(config.config),
        pinned=False,
        layers=refs,
        manifest=digest,
        top=top,
        annotations=manifest.annotations,
        architecture=config.architecture,
        os=config.os,
    )


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise disk_error(error, os.path.dirname(path), "reading a download") from error
