"""Unpacked layers, shared by every image that has them.

    <root>/layers/
        KEY.erofs                  a layer as one file: an EROFS image, and behind it what else there is (layer_file.py)
        KEY/                       a layer as a directory
            fs/                    the overlay lower directory
            skeleton               the tar without file contents (skeleton.py); missing if it could not be kept
            whiteouts              while the layer is not settled (jobs.py)
            layer.json             diff id, size and so on
        new-<random>[.erofs]       being unpacked, or not on disk yet
        old-<random>[.erofs]       being removed
    KEY is <hex of diff id>        for a layer that stands on its own
           chain-<hex of chain id> for one that took something from those below it (see unpack.py)

new-* -> `sync` of the file system -> rename -> fsync of layers/. What has its final name is therefore whole and on disk: the
name is the marker. Start-up removes new-* and old-*. What new layers are made as is the node's choice (`form`); those that
are there stay as they are, and either may lie upon the other.

Sizes are counted once, while unpacking: no layer is ever walked to learn them.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from imagesvc.disk_errors import disk_error
from imagesvc.erofs import layer_file
from imagesvc.limits import MIB
from imagesvc.store.content import sync_directory
from imagesvc.uninterrupted import to_its_end
from imagesvc.worker.pool import JobFailed, WorkerPool
from kernel import modes, syscalls, verity
from proto.errors import Code, CrispError
from shim import layer_probe

log = structlog.get_logger()

T = TypeVar("T")

_REMOVALS = 3
"""Attempts at removing a directory: the worker may have been killed. The next start tries again."""

_PAGE = 4096
_SOUND_PAGE_CACHE = (7, 0)
_SKELETON_FLOOR = 1 * MIB
"""A skeleton above this, and above its layer, is not kept: an archive that is all headers must not take the disk twice."""

_NEW, _OLD, _CHAIN = "new-", "old-", "chain-"
_SKELETON, _WHITEOUTS, _DOCUMENT = "skeleton", "whiteouts", "layer.json"

DIRECTORY, EROFS = "directory", "erofs"
"""What a layer is."""


@dataclass(frozen=True)
class LayerInfo:
    """What layer.json keeps. `bytes` are of disk, in whole pages, the skeleton's among them; `inflated` of the tar.

    `attributed`: directories of it have extended attributes, which layers above it inherit (unpack.py). `entries` of the tar
    and mode, uid and gid of the `root` directory are known of files alone.
    """

    key: str
    diff_id: str
    bytes: int
    inodes: int
    inflated: int
    has_root: bool
    skeleton: bool
    attributed: bool = False
    entries: int = -1
    root: tuple[int, int, int] | None = None

    @property
    def alone(self) -> bool:
        """Whether it was unpacked without a look at those below it."""
        return not self.key.startswith(_CHAIN)

    @property
    def shows(self) -> bool:
        """Whether there is anything in it."""
        return self.has_root or (self.entries > 0 if self.entries >= 0 else self.inodes - self.skeleton > 1)


class Layer:
    """A layer. `path` changes once, when the layer is published."""

    def __init__(self, info: LayerInfo, path: str) -> None:
        self.info = info
        self.path = path
        self.settled = True
        """False while it has whiteouts of which it is not known what they hide."""

    @property
    def lower(self) -> str:
        """The overlay lower directory, or the file to be mounted as one (shim/layer_mounts.py)."""
        return self.path if _is_file(self.path) else os.path.join(self.path, "fs")

    def root_owner(self) -> tuple[int, int, int]:
        """Mode, uid and gid of its root directory. Blocking, for one stat."""
        if self.info.root is not None:
            mode, uid, gid = self.info.root
            return mode, uid, gid
        status = os.stat(self.lower)
        return status.st_mode & 0o7777, status.st_uid, status.st_gid


class LayerStore:
    """All layers of one root directory. Look-ups read memory."""

    def __init__(self, root: str, executor: Executor, workers: WorkerPool, form: str = DIRECTORY, mounts: str = "") -> None:
        """`form` is what new layers are made as: DIRECTORY or EROFS. `mounts` is where those that are files are mounted for
        containers (shim/layer_mounts.py); empty if nobody mounts any."""
        self.form = form
        self._mounts = mounts
        self.root = os.path.join(root, "layers")
        self._executor = executor
        self._workers = workers
        self._layers: dict[str, Layer] = {}
        self._staged: dict[str, Layer] = {}
        self._wanted: collections.Counter[str] = collections.Counter()
        self._syncing = asyncio.Lock()
        self._disk = -1
        """A descriptor that is older than every byte: the kernel tells it of all write errors since (syncfs(2))."""
        self._failures = 0
        self._background: set[asyncio.Task[None]] = set()
        self._removals: set[asyncio.Task[None]] = set()

    def prepare(self) -> list[str]:
        """Loads the whole layers; returns what is left over and has to be removed. Blocking."""
        modes.own(self.root, 0o711)
        if self._disk < 0:
            self._disk = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        junk = []
        for entry in os.scandir(self.root):
            if entry.name.startswith((_NEW, _OLD)):
                junk.append(entry.path)
                continue
            try:
                info = _info(entry.path)
            except (OSError, ValueError, TypeError):
                junk.append(self._set_aside(entry.path))
                continue
            if info.key in self._layers:
                junk.append(self._set_aside(entry.path))
            else:
                self._layers[info.key] = Layer(info, entry.path)
        return junk

    def find(self, diff_id: str, chain_id: str) -> Layer | None:
        """The layer for this place in an image, if it is here: published, or unpacked by a pull that still runs, which may
        not have settled it."""
        for key in (_own_key(diff_id), _chain_key(chain_id)):
            layer = self.by_key(key)
            if layer is not None:
                return layer
        return None

    def find_upon(self, chain_id: str) -> Layer | None:
        """The same, where the layer has to have been unpacked for those below it."""
        return self.by_key(_chain_key(chain_id))

    def get(self, key: str) -> Layer | None:
        """A published layer by its key."""
        return self._layers.get(key)

    def by_key(self, key: str) -> Layer | None:
        """A layer by its key, published or staged."""
        return self._layers.get(key) or self._staged.get(key)

    def all(self) -> list[Layer]:
        """Every published layer."""
        return list(self._layers.values())

    def new_directory(self) -> str:
        """Makes an empty directory to unpack into. Blocking, but only for a mkdir."""
        path = os.path.join(self.root, _NEW + secrets.token_hex(8))
        try:
            os.mkdir(path, 0o711)
        except OSError as error:
            raise disk_error(error, self.root, "making a layer directory") from error
        return path

    def new_file(self) -> str:
        """The path of a file to unpack into, which is not there yet."""
        return os.path.join(self.root, _NEW + secrets.token_hex(8) + layer_file.SUFFIX)

    def stage(self, path: str, result: dict[str, Any], diff_id: str, chain_id: str) -> Layer:
        """Takes in an unpacked directory or file. Where another pull has staged the same layer meanwhile, that one is
        returned and this one removed. Blocking, but only for one small write. Raises CrispError where the disk fails."""
        key = _chain_key(chain_id) if result["depends"] or result["unsettled"] else _own_key(diff_id)
        try:
            size = result["skeleton_bytes"] if _is_file(path) else os.stat(os.path.join(path, _SKELETON)).st_size
            keep = result["skeleton"] and size <= max(_SKELETON_FLOOR, result["bytes"])
            taken = os.stat(path).st_blocks * 512 if _is_file(path) else result["bytes"]
            if not _is_file(path):
                _tidy(path, keep_skeleton=keep, keep_whiteouts=result["unsettled"])
        except OSError as error:
            raise disk_error(error, self.root, f"taking in layer {diff_id}") from error
        info = LayerInfo(
            key=key,
            diff_id=diff_id,
            bytes=taken + _pages(size, kept=keep, counted=_is_file(path)),
            inodes=result["inodes"] + (keep and not _is_file(path)),
            inflated=result["inflated"],
            has_root=result["has_root"],
            skeleton=keep,
            attributed=result["attributed"],
            entries=result["entries"] if _is_file(path) else -1,
            root=tuple(result["root"]) if _is_file(path) else None,
        )
        layer = self._stage(path, info)
        if layer.path == path:
            layer.settled = not result["unsettled"]
        return layer

    def stage_artifact(self, path: str, key: str, digest: str, size: int, inodes: int) -> Layer:
        """Takes in the directory of an artifact (artifacts.py); its diff id is the manifest's digest."""
        return self._stage(path, LayerInfo(key, digest, size, inodes, size, has_root=True, skeleton=False))

    def _stage(self, path: str, info: LayerInfo) -> Layer:
        known = self.by_key(info.key)
        if known is not None:
            self.remove_directories([path])
            return known
        document = json.dumps(asdict(info)).encode()
        try:
            if _is_file(path):
                layer_file.seal(path, document, keep_skeleton=info.skeleton)
            else:
                Path(path, _DOCUMENT).write_bytes(document)
        except OSError as error:
            raise disk_error(error, self.root, f"writing layer {info.diff_id}") from error
        layer = self._staged[info.key] = Layer(info, path)
        if not _is_file(path):
            self._write_back()
        return layer

    def _write_back(self) -> None:
        """Has the kernel write while the next layers are unpacked, so that the sync at the end finds little to do.

        Not for files, which are written past the page cache: it would write the blobs of the next layers, which are
        removed once these are unpacked.
        """
        if not self._syncing.locked() and not self._background:
            task = asyncio.create_task(self._sync_early())
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _sync_early(self) -> None:
        async with self._syncing:
            with suppress(CrispError):  # told to who publishes: `_sync` has counted it
                await self._sync()

    async def _sync(self) -> None:
        """syncfs(2). A write error is told once, and of any file: nothing that was written until now can be trusted."""
        try:
            await asyncio.get_running_loop().run_in_executor(None, syscalls.syncfs, self._disk)
        except OSError as error:
            self._failures += 1
            staged, self._staged = self._staged, {}
            self.remove_directories([layer.path for layer in staged.values()])
            raise disk_error(error, self.root, "writing to disk") from error

    def mark(self) -> int:
        """For `publish`: taken before the first byte is written."""
        return self._failures

    async def publish(
        self,
        layers: Iterable[Layer],
        mark: int,
        before_rename: Callable[[], None],
        record: Callable[[], Coroutine[Any, Any, T]],
    ) -> T:
        """Makes staged layers durable: one sync of the file system, then their names, then what `record` writes of them.

        `before_rename` runs on the executor after the sync: what else was written and waits for it. From there on all is
        done to its end: half of it would be layers with names that somebody is about to give up.

        Raises:
            CrispError: INTERNAL or RESOURCE_EXHAUSTED where the disk has failed a write since the `mark`, whoever saw it.
        """
        wanted = list(layers)
        async with self._syncing:
            await self._sync()
            if mark != self._failures:
                raise CrispError(Code.INTERNAL, f"the disk has failed to write what was pulled: {self.root}")
            return await to_its_end(self._name(wanted, before_rename, record))

    async def _name(
        self, wanted: list[Layer], before_rename: Callable[[], None], record: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, before_rename)
        await loop.run_in_executor(self._executor, self._rename, wanted)
        for layer in wanted:
            self._staged.pop(layer.info.key, None)
            self._layers[layer.info.key] = layer
        if files := [layer.path for layer in wanted if _is_file(layer.path)]:
            self._behind(self._finish(files))
        return await record()

    def _rename(self, layers: Sequence[Layer]) -> None:
        try:
            for layer in layers:
                if layer.info.key not in self._layers:
                    target = os.path.join(self.root, layer.info.key) + _suffix(layer.path)
                    os.rename(layer.path, target)
                    layer.path = target
            sync_directory(self.root)
        except OSError as error:
            raise disk_error(error, self.root, "publishing layers") from error

    def want(self, diff_ids: Iterable[str]) -> None:
        """A pull counts on layers with these diff ids, here or yet to come, until it calls `unwant`."""
        self._wanted.update(diff_ids)

    def unwant(self, diff_ids: Iterable[str]) -> None:
        """Ends `want`: staged layers that no other pull wants are given up."""
        self._wanted.subtract(diff_ids)
        self._wanted = +self._wanted
        paths = []
        for layer in list(self._staged.values()):
            if not self.is_wanted(layer):
                del self._staged[layer.info.key]
                paths.append(layer.path)
        self.remove_directories(paths)

    def is_wanted(self, layer: Layer) -> bool:
        """Whether a running pull counts on the layer."""
        return layer.info.diff_id in self._wanted

    def remove(self, keys: Iterable[str]) -> int:
        """Removes published layers: gone from view at once, from the disk soon. Returns the bytes that this frees."""
        freed = 0
        paths = []
        for key in keys:
            layer = self._layers.pop(key, None)
            if layer is not None:
                freed += layer.info.bytes
                paths.append(self._set_aside(layer.path))
        self.remove_directories(paths)
        return freed

    def _set_aside(self, path: str) -> str:
        aside = os.path.join(self.root, _OLD + secrets.token_hex(8)) + _suffix(path)
        os.rename(path, aside)
        return aside

    def remove_directories(self, paths: Sequence[str]) -> None:
        """Has a worker remove trees and files in the background; what a crash interrupts is removed at the next start."""
        if paths:
            self._behind(self._remove(list(paths)))

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def _finish(self, paths: list[str]) -> None:
        """What goes behind a pull: the pages of what was written leave the page cache, and fs-verity is switched on where
        the file system has it.

        A file with fs-verity is read through the page cache, which is right only since Linux 7.0 (shim/layer_probe.py).
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._executor, _forget_pages, paths)
            if layer_probe.release() < _SOUND_PAGE_CACHE:
                return
            if await loop.run_in_executor(self._executor, verity.is_supported, paths[0]):
                await self._workers.run({"job": "protect", "paths": paths})
        except (OSError, JobFailed, CrispError) as error:
            log.warning("fs-verity could not be switched on", paths=paths, error=str(error))

    async def _remove(self, paths: list[str]) -> None:
        for _attempt in range(_REMOVALS):
            try:
                await self._workers.run({"job": "remove", "paths": paths, "mounts": self._mounts})
            except (JobFailed, CrispError) as error:
                log.warning("a directory could not be removed", paths=paths, error=str(error))
            else:
                return

    async def reconcile(self) -> None:
        """Has what is mounted, and is no layer any more, unmounted: a daemon that was killed may have left it."""
        if not self._mounts or not os.path.exists(self._mounts):
            return
        try:
            await self._workers.run({"job": "reconcile", "mounts": self._mounts, "directory": self.root})
        except (JobFailed, CrispError) as error:
            log.warning("cannot look at the layers' mounts", mounts=self._mounts, error=str(error))

    def close(self) -> None:
        """Nothing is written any more."""
        descriptor, self._disk = self._disk, -1
        if descriptor >= 0:
            os.close(descriptor)

    async def settle(self) -> None:
        """Returns when what was to be removed is gone."""
        while running := self._removals | self._background:
            await asyncio.wait(running)


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of each layer, bottom first.

    OCI config.md: "ChainID(L0|...|Ln) = Digest(ChainID(L0|...|Ln-1) + " " + DiffID(Ln))", and ChainID(L0) = DiffID(L0).
    """
    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest())
        else:
            chain.append(diff_id)
    return chain


def _own_key(diff_id: str) -> str:
    return diff_id.partition(":")[2]


def _chain_key(chain_id: str) -> str:
    return _CHAIN + chain_id.partition(":")[2]


def _pages(skeleton: int, *, kept: bool, counted: bool) -> int:
    """What a skeleton changes of the bytes taken: it comes on top of them, or is among them and may go."""
    pages = (skeleton + _PAGE - 1) & -_PAGE
    return pages * (kept - counted)


def _is_file(path: str) -> bool:
    return path.endswith(layer_file.SUFFIX)


def _suffix(path: str) -> str:
    return layer_file.SUFFIX if _is_file(path) else ""


def _info(path: str) -> LayerInfo:
    """What a layer says of itself. Raises OSError, ValueError or TypeError where it is not whole."""
    document = layer_file.read(path).document if _is_file(path) else Path(path, _DOCUMENT).read_bytes()
    fields = json.loads(document)
    if fields.get("root"):
        fields["root"] = tuple(fields["root"])
    return LayerInfo(**fields)


def _tidy(path: str, *, keep_skeleton: bool, keep_whiteouts: bool) -> None:
    """Removes what a layer directory does not need any more."""
    if not keep_skeleton:
        os.unlink(os.path.join(path, _SKELETON))
    if not keep_whiteouts:
        os.unlink(os.path.join(path, _WHITEOUTS))


def _forget_pages(paths: Iterable[str]) -> None:
    """Files are read past the page cache once they are mounted: what was written need not stay there."""
    for path in paths:
        with suppress(FileNotFoundError):  # it has been removed meanwhile
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
