"""The image service: everything about images below the gRPC layer.

    <root>/blobs, <root>/ingest    store/content.py
    <root>/layers                  layers.py
    <root>/empty                   the lower directory of an image without layers
    <root>/credentials.key         credentials.py
    records                        images.py, in the daemon's database

All methods run on the daemon's event loop and do not block it: files are read and written on a bounded executor, layers are
unpacked and removed in worker processes. List, resolve and usage read memory.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any, TypeVar

import structlog

from imagesvc.build.commit import Changes, Committer
from imagesvc.build.exporting import Exporter
from imagesvc.build.importing import Archive
from imagesvc.build.rootfs import rootfs_image
from imagesvc.config import ImageConfig
from imagesvc.disk_errors import disk_error
from imagesvc.references import Reference, parse_reference, try_parse
from imagesvc.registry import access, credentials, endpoints
from imagesvc.registry.access import Access
from imagesvc.registry.client import RegistryClient
from imagesvc.registry.credentials import Auth
from imagesvc.store.content import ContentStore
from imagesvc.store.images import ROOTFS, Image, ImageIndex, ImageRecords, OciConfig
from imagesvc.store.layers import DIRECTORY, LayerStore
from imagesvc.store.materials import Materials, require_image
from imagesvc.store.usage import FsInfo, image_usage
from imagesvc.store.verify import Report, check_blobs, check_layer
from imagesvc.transfer.downloads import Downloads
from imagesvc.transfer.joins import Joins
from imagesvc.transfer.progress import PullProgress
from imagesvc.transfer.proofs import Proofs
from imagesvc.transfer.pull import Puller
from imagesvc.transfer.push import Pusher
from imagesvc.transfer.unpacking import Unpacker
from imagesvc.worker.pool import JobFailed, WorkerPool
from kernel import modes
from kernel.failpoints import failpoint
from proto.errors import CrispError, invalid, not_found

log = structlog.get_logger()

T = TypeVar("T")

_THREADS = 4
_SWEEP_SECONDS = 3600.0
"""Between two looks at partial downloads."""
_PULLS = 3
"""Times that a pull is done again because somebody has removed what it has just brought."""
_MAX_JOBS = 32
"""Worker processes at a time. Those that wait for a download count too, so it is well above what one pull may have."""


class ImageService:
    """Images of one node. `start` before anything else, `close` at the end."""

    def __init__(
        self,
        config: ImageConfig,
        root: str | os.PathLike[str],
        records: ImageRecords,
        form: str = DIRECTORY,
        layer_mounts: str = "",
    ) -> None:
        """`form` and `layer_mounts` as a LayerStore takes them."""
        self._config = config
        self._root = os.fspath(root)
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="images")
        self._workers = WorkerPool(_MAX_JOBS)
        self._client = RegistryClient()
        self._store = ContentStore(self._root, self._executor)
        self._layers = LayerStore(self._root, self._executor, self._workers, form, layer_mounts)
        self._downloads = Downloads(self._store, self._client)
        self._index = ImageIndex(records, config.pinned)
        self._joins = Joins()
        unpacker = Unpacker(self._layers, self._workers, config.limits)
        self._puller = Puller(
            config,
            self._client,
            self._store,
            self._layers,
            self._downloads,
            unpacker,
            self._index,
            self._joins,
            Proofs(self._index, self._client),
        )
        self._pulls: dict[object, PullProgress] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._holders: dict[str, Image] = {}
        self._key = b""
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads the records and cleans up after whatever ended the last run."""
        junk = await self._blocking(self._prepare)
        self._index.load()
        self._layers.remove_directories(junk)
        self._collect()
        self._sweeping = asyncio.create_task(self._sweep(), name="partial downloads")
        self._tasks.add(reconciling := asyncio.create_task(self._layers.reconcile(), name="layer mounts"))
        reconciling.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        """Drops partial downloads that nobody has come back for."""
        while True:
            await asyncio.sleep(min(max(self._config.keep_partial / 4, 1.0), _SWEEP_SECONDS))
            await self._blocking(self._store.drop_stale, self._config.keep_partial, self._downloads.paths())

    def _prepare(self) -> Sequence[str]:
        # Layers have set-user-id programs and the world's readable files: nobody else may come so far.
        modes.own(self._root, 0o700)
        modes.own(self.empty, 0o755)
        self._key = credentials.load_or_create_key(os.path.join(self._root, "credentials.key"))
        self._store.prepare(self._config.keep_partial)
        return self._layers.prepare()

    async def close(self) -> None:
        """Stops pulls, keeping what they have downloaded, and ends the worker process."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self._joins.close()
        await self.settle()
        await self._workers.close()
        await self._client.close()
        self._executor.shutdown(wait=True)
        self._layers.close()

    async def settle(self) -> None:
        """Returns when everything that was to be removed is gone from the disk."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._layers.settle()

    async def pull(
        self, reference: str, auth: Auth | None = None, progress: Callable[[PullProgress], None] | None = None
    ) -> str:
        """Pulls an image and returns its id. The same pull asked for twice runs once.

        Raises:
            CrispError: see pull.Puller.pull and references.parse_reference.
        """
        parsed = parse_reference(reference)
        found = await self._registry_access(parsed, auth)
        fingerprint = access.fingerprint(found, self._key)
        key = ("pull", str(parsed), fingerprint)
        shown = self._pulls.setdefault(key, PullProgress(str(parsed)))
        if progress is not None:
            shown.watchers.append(progress)

        async def run() -> Image:
            try:
                return await self._puller.pull(parsed, found, fingerprint, shown)
            finally:
                self._pulls.pop(key, None)

        for _attempt in range(_PULLS):
            image: Image = await self._joins.run(key, run)
            if self._index.get(image.id) is not None:
                break
            # Removed between its record and this answer: who pulls shall have it.
            shown = self._pulls.setdefault(key, PullProgress(str(parsed)))
        return image.id

    def running_pulls(self) -> Sequence[PullProgress]:
        """The pulls that run now, for status and metrics."""
        return list(self._pulls.values())

    def resolve(self, reference: str) -> Image | None:
        """The image that an id, the unique start of one, a tag or a digest reference means. Reads memory."""
        return self._index.resolve(reference)

    def list(self, reference: str = "") -> Sequence[Image]:
        """All images, or the one that a reference means. Reads memory."""
        if not reference:
            return self._index.all()
        image = self._index.resolve(reference)
        return [image] if image else []

    async def history(self, image: Image) -> Sequence[Mapping[str, Any]]:
        """How an image was made, as its configuration tells (OCI config.md, "history"), oldest first; else empty."""
        try:
            document = json.loads(await self._blocking(self._store.read, image.id))
            return [line for line in document["history"] if isinstance(line, dict)]
        except (CrispError, ValueError, KeyError, TypeError):
            return []

    async def remove(self, reference: str) -> None:
        """Removes an image with all its names; nothing happens where there is none.

        Layers that containers use stay until they are released.
        """
        image = self._index.resolve(reference)
        if image is not None:
            await self._index.remove(image, in_use=self._is_held(image))
            failpoint("image.removed")
            self._collect()

    def _is_held(self, image: Image) -> bool:
        return any(held.id == image.id for held in self._holders.values())

    async def untag(self, reference: str) -> None:
        """Takes one name from an image, and removes the image with its last name."""
        parsed = try_parse(reference)
        image = self._index.resolve(str(parsed)) if parsed else None
        if parsed is None or image is None:
            raise not_found(f"no image has the name {reference}")
        if {str(parsed)} >= {*image.repo_tags, *image.repo_digests}:
            await self.remove(image.id)
        else:
            await self._index.untag(image, str(parsed))

    async def tag(self, source: str, target: str) -> Image:
        """Gives an image a further name."""
        image = self._index.resolve(source)
        if image is None:
            raise not_found(f"image {source} is not on this node")
        name = parse_reference(target)
        return await self._index.name(replace(image, repo_tags=(str(name),), repo_digests=()))

    def image_of(self, image_id: str) -> Image | None:
        """The image of a container by its whole id, also if the image has been removed since."""
        return self._index.get(image_id) or self._index.get_removed(image_id)

    def acquire(self, image: Image, holder: str) -> None:
        """Keeps an image's layers for a holder (a container, a mount) until it releases them."""
        self._holders[holder] = image

    def release(self, holder: str) -> None:
        """Ends `acquire`; layers that nobody uses any more are removed."""
        if self._holders.pop(holder, None) is not None:
            self.drop_unused()

    def drop_unused(self) -> None:
        """Drops what no image and no holder needs. Called after recovery too, when every container has its image."""
        for image in self._index.removed():
            if not self._is_held(image):
                task = asyncio.create_task(self._index.forget(image))
                self._tasks.add(task)
                task.add_done_callback(self._forgotten)
        self._collect()

    def _forgotten(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("cannot forget a removed image", error=str(task.exception()))
        self._collect()

    def lower_dirs(self, image: Image) -> Sequence[str]:
        """The overlay lower directories, topmost first; at least one. A name in `.erofs` is a file, to be mounted as one.

        A layer that stands twice in an image is listed once, at its topmost place: overlayfs refuses a directory that comes
        twice, and what the lower of the two did, the upper one does again.

        Raises:
            CrispError: NOT_FOUND where a layer is gone.
        """
        if image.kind == ROOTFS:
            return [image.directory]
        directories = []
        for key in dict.fromkeys(layer.key for layer in reversed(image.layers)):
            layer = self._layers.get(key)
            if layer is None:
                raise not_found(f"layer {key} of image {image.id} is not on this node: pull the image again")
            if layer.info.shows:
                directories.append(layer.lower)
        return directories or [self.empty]

    @property
    def empty(self) -> str:
        """The lower directory of an image without layers."""
        return os.path.join(self._root, "empty")

    def root_owner(self, image: Image) -> tuple[int, int, int]:
        """Mode, uid and gid of the image's root directory: of the topmost layer that has it. Blocking, for one stat.

        overlayfs shows the root of the upper directory, so whoever makes that one has to give it these.
        """
        if image.kind == ROOTFS:
            status = os.stat(image.directory)
            return status.st_mode & 0o7777, status.st_uid, status.st_gid
        for ref in reversed(image.layers):
            layer = self._layers.get(ref.key)
            if layer is not None and layer.info.has_root:
                return layer.root_owner()
        return 0o755, 0, 0

    async def fs_info(self) -> FsInfo:
        """Disk taken by images, and by what has come of those that are not whole."""
        partial = await self._blocking(self._store.partial_usage)
        return image_usage(self._root, self._store, self._layers, *partial)

    async def add_rootfs(self, name: str, directory: str, config: OciConfig | None = None) -> str:
        """Makes an image of a plain directory, without copying it; returns its id."""
        reference: Reference = parse_reference(name)
        platform = self._config.wanted_platform()
        size = (await self.measure(directory))[0] if await self._blocking(os.path.isdir, directory) else 0
        image, raw = await self._blocking(rootfs_image, reference, directory, config or OciConfig(), platform, size)
        mark = self._layers.mark()
        staged = {image.id: await self._store.put(image.id, raw)}
        added = await self._layers.publish([], mark, lambda: self._store.publish(staged), lambda: self._index.add(image))
        return added.id

    async def import_archive(
        self, path: str, name: str = "", progress: Callable[[PullProgress], None] | None = None
    ) -> Sequence[str]:
        """Imports every image of an OCI layout (directory or tar) or docker-archive; returns their ids.

        `name` is for archives that do not say what their image is called.
        """
        scratch = os.path.join(self._root, "ingest", f"import-{secrets.token_hex(8)}")
        archive = await self._blocking(Archive, path, scratch)
        failpoint("image.opened")
        try:
            found = await self._blocking(archive.images, self._config.wanted_platform(), name)
            shown = PullProgress(path, watchers=[progress] if progress else [])
            return [await self._puller.take_in(image, archive.holder(self._executor), shown) for image in found]
        finally:
            await self._blocking(archive.close)

    async def export(self, references: Sequence[str], path: str, form: str = "oci") -> None:
        """Writes images into a new archive: an OCI layout ("oci") or the format of `docker save` ("docker")."""
        chosen = [require_image(self._index.resolve(name), name) for name in references]
        with self._using(chosen), self._materials() as materials:
            await Exporter(self._store, self._layers, self._workers).export(chosen, path, form, materials)

    async def push(
        self,
        reference: str,
        target: str = "",
        auth: Auth | None = None,
        progress: Callable[[PullProgress], None] | None = None,
    ) -> str:
        """Uploads an image, under another name if `target` is given; returns the digest that it has there."""
        image = require_image(self._index.resolve(reference), reference)
        name = parse_reference(target or reference)
        found = await self._registry_access(name, auth)
        shown = PullProgress(str(name), watchers=[progress] if progress else [])
        with self._using([image]), self._materials() as materials:
            digest = await Pusher(self._client, self._store).push(image, name, found, materials, shown)
            fingerprint = access.fingerprint(found, self._key)
            named = replace(image, repo_tags=(), repo_digests=(name.with_digest(digest),), checked=(fingerprint,))
            with suppress(CrispError):  # removed meanwhile: it was pushed all the same
                await self._index.name(named)
        return digest

    async def commit(self, base: Image, upper: str, reference: str, changes: Changes | None = None) -> str:
        """Makes an image of a container's writable directory on top of its image; returns the new image's id."""
        name = parse_reference(reference)
        with self._using([base]), self._materials() as materials:
            committer = Committer(self._store, self._workers, self._puller, self._executor, materials)
            return await committer.commit(base, upper, [name], changes or Changes())

    async def commit_step(self, base: Image | None, upper: str, references: Sequence[str], changes: Changes) -> str:
        """As `commit`, of a build's step: without a base of nothing, without `upper` with no new layer."""
        names = [parse_reference(reference) for reference in references]
        with self._using([base] if base is not None else []), self._materials() as materials:
            committer = Committer(self._store, self._workers, self._puller, self._executor, materials)
            return await committer.commit(base, upper, names, changes)

    async def config_document(self, image: Image) -> bytes:
        """The image's configuration document, as its id is the digest of."""
        return await self._blocking(self._store.read, image.id)

    async def verify(self, *, repair: bool = True) -> Report:
        """Checks every blob and layer; with `repair`, drops what is bad and the records of images that need it."""
        report = Report()
        await self._blocking(check_blobs, self._store, sorted(self._store.digests()), report)
        for layer in self._layers.all():
            await check_layer(self._workers, layer, report)
        for ref in [ref for image in self._index.all() for ref in image.layers if self._layers.get(ref.key) is None]:
            report.bad_layers[ref.key] = "it is not there"
        if repair and not report.good:
            await self._repair(report)
        return report

    async def _repair(self, report: Report) -> None:
        held = {layer.key for image in self._holders.values() for layer in image.layers}
        for image in self._index.all():
            documents = {image.id, image.manifest, image.top} & set(report.bad_blobs)
            if documents or any(layer.key in report.bad_layers for layer in image.layers):
                report.dropped_images.append(image.id)
                await self._index.remove(image, in_use=self._is_held(image))
        self._store.remove(report.bad_blobs)
        report.in_use = [key for key in report.bad_layers if key in held]
        self._layers.remove(key for key in report.bad_layers if key not in held)
        self._collect()

    async def measure(self, directory: str) -> tuple[int, int]:
        """Bytes of disk and inodes below a container's writable directory, counted by a worker when asked for."""
        answer = await self._workers.run({"job": "measure", "directory": directory})
        return answer["bytes"], answer["inodes"]

    async def take_checkpoint(self, source: str | Image, target: str) -> None:
        """Copies the files of a checkpoint (checkpoint_files.py) into the new directory `target`.

        `source` is an image that holds one, or the path of an archive or of a directory. Raises INVALID_ARGUMENT where it is
        none.
        """
        image, path = (source, "") if isinstance(source, Image) else (None, source)
        request = {
            "job": "take",
            "path": path,
            "layers": self.lower_dirs(image) if image is not None else [],
            "target": target,
            "limits": asdict(self._config.limits),
        }
        os.mkdir(target, 0o700)
        with self._using([image] if image is not None else []):
            await self._checkpoint_job(request, f"checkpoint {image.id if image is not None else path}")

    async def apply_changes(self, diff: str, deleted: str, target: str, lower: Sequence[str]) -> None:
        """Makes of a checkpoint's `rootfs-diff.tar`, and `deleted.files` if not empty, the writable layer `target`."""
        request = {
            "job": "changes",
            "diff": diff,
            "deleted": deleted,
            "target": target,
            "lower": lower,
            "limits": asdict(self._config.limits),
        }
        await self._checkpoint_job(request, f"the checkpoint's {os.path.basename(diff)}")

    async def _checkpoint_job(self, request: Mapping[str, Any], what: str) -> None:
        try:
            await self._workers.run(request)
        except JobFailed as failure:
            if failure.kind != "os":
                raise invalid(f"{what} cannot be used: {failure.message}") from None
            if failure.errno in (errno.ENOENT, errno.ENOTDIR):
                raise not_found(f"{what} is not there: {failure.path or failure.message}") from None
            error = OSError(failure.errno, failure.message, failure.path)
            raise disk_error(error, str(request["target"]), f"reading {what}") from None

    async def _blocking(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call, *args)

    async def _registry_access(self, name: Reference, auth: Auth | None) -> Sequence[Access]:
        """Where to ask, and as whom: the caller's credentials, or the node's where the caller brings none."""
        given = credentials.from_auth(auth)
        found = await self._blocking(endpoints.endpoints_for, name, self._config.registries)
        config = self._config
        return await self._blocking(access.accesses, name, found, given, config.auth_files, config.pull_progress_timeout)

    @contextmanager
    def _using(self, images: Sequence[Image]) -> Iterator[None]:
        """Keeps the layers of images while they are read."""
        holders = [f"reader-{secrets.token_hex(8)}" for _image in images]
        for holder, image in zip(holders, images, strict=True):
            self.acquire(image, holder)
        try:
            yield
        finally:
            for holder in holders:
                self.release(holder)

    @contextmanager
    def _materials(self) -> Iterator[Materials]:
        materials = Materials(self._store, self._layers, self._workers, os.path.join(self._root, "ingest"))
        try:
            yield materials
        finally:
            materials.close()

    def _collect(self) -> None:
        """Removes layers and blobs that no image and no holder needs."""
        live = [*self._index.all(), *self._index.removed(), *self._holders.values()]
        keys = {layer.key for image in live for layer in image.layers}
        unused = [
            layer.info.key
            for layer in self._layers.all()
            if layer.info.key not in keys and not self._layers.is_wanted(layer)
        ]
        if unused:
            freed = self._layers.remove(unused)
            log.info("removed layers that nobody uses", layers=len(unused), bytes=freed)
        self._drop_blobs(live)

    def _drop_blobs(self, live: Iterable[Image]) -> None:
        needed: set[str] = set()
        for image in live:
            needed |= {image.id, image.manifest, image.top}
            needed |= {layer.digest for layer in image.layers}
        self._store.remove(self._store.digests() - needed)
