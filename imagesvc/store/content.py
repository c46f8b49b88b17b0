"""The content store: blobs by their digest, and downloads that are not whole yet.

    <root>/ingest/<hex>.<part>     bytes from offset 0 of the blob, as far as they came; resumed by the next pull of the same
                                   repository with the same credentials, which `part` is made of
    <root>/blobs/sha256/<hex>      whole, verified and on disk (sha512 likewise)

A blob goes ingest/ -> verified -> `publish` (after the caller's one sync) -> blobs/. A power cut may leave a partial
or, before the sync, an unpublished blob: both are in ingest/, and nothing in ingest/ is ever trusted without being
hashed again. Layer blobs that the node does not keep never leave ingest/: they are dropped once unpacked.

Blocking calls run on the executor that the store is given; a write of one `_BATCH` overlaps the download of the next.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Protocol

from imagesvc.disk_errors import disk_error
from imagesvc.limits import MIB
from imagesvc.references import check_digest, is_digest
from kernel import modes
from proto.errors import Code, CrispError, not_found

_BATCH = 1 * MIB
_READ = 1 * MIB
_PUT, SCRATCH = "put-", ("made-", "import-")
"""Documents that are staged, and scratch files of exports and imports. At the start they are of a daemon that died."""
_REHASHED = 32
"""Pieces of a partial download that are hashed at a go."""


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class ContentStore:
    """Blobs under one root directory."""

    def __init__(self, root: str, executor: Executor) -> None:
        self._root = root
        self._ingest_dir = os.path.join(root, "ingest")
        self._blobs_dir = os.path.join(root, "blobs")
        self._executor = executor
        self._sizes: dict[str, int] = {}
        self._kept: collections.Counter[str] = collections.Counter()

    def prepare(self, keep_partial_seconds: float) -> None:
        """Makes the directories, drops partial downloads older than given, and counts what is there. Blocking."""
        for directory in (self._ingest_dir, self._blobs_dir):
            modes.own(directory, 0o700)
        for algorithm in ("sha256", "sha512"):
            directory = os.path.join(self._blobs_dir, algorithm)
            modes.own(directory, 0o700)
            for entry in os.scandir(directory):
                if is_digest(f"{algorithm}:{entry.name}"):
                    self._sizes[f"{algorithm}:{entry.name}"] = entry.stat().st_size
        for entry in os.scandir(self._ingest_dir):
            if entry.name.startswith((_PUT, *SCRATCH)):
                os.unlink(entry.path)
        self.drop_stale(keep_partial_seconds)

    def drop_stale(self, older_than_seconds: float, in_use: Iterable[str] = ()) -> None:
        """Removes partial downloads, but for the paths `in_use`, that nobody has added to for a while. Blocking."""
        kept = {os.path.basename(path) for path in in_use}
        horizon = time.time() - older_than_seconds
        for entry in os.scandir(self._ingest_dir):
            try:
                if entry.name not in kept and entry.stat(follow_symlinks=False).st_mtime < horizon:
                    os.unlink(entry.path)
            except FileNotFoundError:
                continue

    def partial_usage(self) -> tuple[int, int]:
        """Bytes of disk and files in ingest/: downloads that run, and those that wait to be resumed. Blocking."""
        size = count = 0
        for entry in os.scandir(self._ingest_dir):
            try:
                size += entry.stat(follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                continue
            count += 1
        return size, count

    def path(self, digest: str) -> str:
        """Where a published blob lies. INVALID_ARGUMENT for what is no digest: it would be any path."""
        algorithm, _, value = check_digest(digest, "blob").partition(":")
        return os.path.join(self._blobs_dir, algorithm, value)

    def has(self, digest: str) -> bool:
        """Whether the blob is published. Reads memory."""
        return digest in self._sizes

    @property
    def total_bytes(self) -> int:
        """Bytes of all published blobs. Reads memory."""
        return sum(self._sizes.values())

    @property
    def count(self) -> int:
        """Number of published blobs."""
        return len(self._sizes)

    def digests(self) -> frozenset[str]:
        """Every published blob."""
        return frozenset(self._sizes)

    def read(self, digest: str) -> bytes:
        """A small blob (manifest, configuration), whole. Blocking; NOT_FOUND where it is not there."""
        try:
            with open(self.path(digest), "rb") as stream:
                return stream.read()
        except FileNotFoundError:
            raise not_found(f"blob {digest} is not on this node") from None
        except OSError as error:
            raise disk_error(error, self._root, f"reading blob {digest}") from error

    async def ingest(self, digest: str, size: int, path: str = "") -> Ingest:
        """Opens the partial download of a blob, with what an earlier try left of it, at `path` (of `staged_path`).

        The caller sees to it that a path is written once at a time.
        """
        opening = asyncio.ensure_future(Ingest.open(self, digest, size, path or self.staged_path(digest)))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise

    async def put(self, digest: str, data: bytes) -> str:
        """Stages a small blob in ingest/, verified, in a file of its own, for `publish`; returns where."""
        path = os.path.join(self._ingest_dir, _PUT + secrets.token_hex(8))
        ingest = await self.ingest(digest, len(data), path)
        try:
            await ingest.write(data)
            await ingest.verify()
        except BaseException:
            self.discard(path)
            raise
        finally:
            await ingest.end()
        return path

    def discard(self, path: str) -> None:
        """Removes a staged file; what is still being written goes to nowhere. Blocking, but only for an unlink."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    def adopt(self, path: str, digest: str) -> None:
        """Stages a file that this daemon has made, and whose digest it has computed, for `publish`. Blocking."""
        os.rename(path, self.staged_path(digest))

    def staged_path(self, digest: str, part: str = "") -> str:
        """Where a blob lies until it is published; `part` tells apart those who bring the same one at a time."""
        suffix = "." + hashlib.sha256(part.encode()).hexdigest()[:16] if part else ""
        return os.path.join(self._ingest_dir, _file_name(digest) + suffix)

    def publish(self, staged: Mapping[str, str]) -> None:
        """Renames verified and synced blobs, given by digest with their paths, and syncs the directory. Blocking."""
        directories = set()
        for digest, path in staged.items():
            if self.has(digest):
                self.discard(path)
                continue
            target = self.path(digest)
            try:
                os.rename(path, target)
                self._sizes[digest] = os.stat(target).st_size
            except FileNotFoundError:
                if not os.path.exists(target):
                    raise
            except OSError as error:
                raise disk_error(error, self._root, f"publishing blob {digest}") from error
            directories.add(os.path.dirname(target))
        for directory in directories:
            sync_directory(directory)

    @contextmanager
    def keeping(self, digests: Iterable[str]) -> Iterator[None]:
        """For as long as the context lasts, `remove` leaves these alone: a record that needs them is being written."""
        wanted = list(digests)
        self._kept.update(wanted)
        try:
            yield
        finally:
            self._kept.subtract(wanted)
            self._kept = +self._kept

    def remove(self, digests: Iterable[str]) -> None:
        """Removes published blobs. Blocking, but only for as many unlinks."""
        for digest in digests:
            if digest in self._kept:
                continue
            self._sizes.pop(digest, None)
            try:
                os.unlink(self.path(digest))
            except FileNotFoundError:
                continue


class Ingest:
    """One blob on its way in: append, verify, then publish or discard.

    `available` counts the bytes that are in the file and may be read by others; `on_available` is called on the event
    loop after each step. Failures of the disk are CrispErrors and keep the partial file, except that a full disk drops it.
    """

    def __init__(self, store: ContentStore, digest: str, size: int, path: str) -> None:
        self._store = store
        self.digest = digest
        self.size = size
        self.path = path
        self.on_available: Callable[[int], None] = lambda _available: None
        self.on_restart: Callable[[], None] = lambda: None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._in_flight = 0
        self._flushing: asyncio.Future[None] | None = None
        self._file: int | None = None
        self._hash = _new_hash(digest)
        self.available = 0

    @classmethod
    async def open(cls, store: ContentStore, digest: str, size: int, path: str) -> Ingest:
        """Opens the file, making it if need be, and hashes what is in it, in steps that let others' writes between."""
        self = cls(store, digest, size, path)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(store._executor, self._open)
            while await loop.run_in_executor(store._executor, self._rehash):
                pass
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise disk_error(error, os.path.dirname(path), f"opening the download of {digest}") from error
            raise
        return self

    def _open(self) -> None:
        """What is longer than the blob is nothing of it."""
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size > self.size:
            os.ftruncate(self._file, 0)

    def _rehash(self) -> bool:
        """Hashes a stretch of what an earlier try left; False at its end."""
        assert self._file is not None
        for _ in range(_REHASHED):
            chunk = os.pread(self._file, _READ, self.available)
            if not chunk:
                return False
            self._hash.update(chunk)
            self.available += len(chunk)
        return True

    @property
    def received(self) -> int:
        """Bytes taken in so far, written or not: the offset to go on from."""
        return self.available + self._in_flight + self._pending_bytes

    async def write(self, chunk: bytes) -> None:
        """Takes in the next bytes. BROKEN content (more than announced) is INVALID_ARGUMENT."""
        self._pending.append(chunk)
        self._pending_bytes += len(chunk)
        if self._pending_bytes >= _BATCH:
            await self._start_flush()

    async def _start_flush(self) -> None:
        """Hands the pending chunks to the executor, after those before them are written."""
        await self._settle()
        chunks, self._pending = self._pending, []
        self._in_flight, self._pending_bytes = self._pending_bytes, 0
        if not chunks:
            return
        loop = asyncio.get_running_loop()
        self._flushing = loop.run_in_executor(self._store._executor, self._append, chunks, self.available)

    async def _settle(self) -> None:
        """Waits for the write in flight and tells how far the file is readable."""
        flushing, self._flushing = self._flushing, None
        if flushing is None:
            return
        try:
            await asyncio.shield(flushing)
        except asyncio.CancelledError:
            await asyncio.wait([flushing])
            flushing.exception()  # nobody waits for these bytes any more
            raise
        self.available += self._in_flight
        self._in_flight = 0
        self.on_available(self.available)

    def _append(self, chunks: list[bytes], offset: int) -> None:
        assert self._file is not None
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    written = os.pwrite(self._file, view, offset)
                    offset += written
                    view = view[written:]
                self._hash.update(chunk)
        except OSError as error:
            raise disk_error(error, self._store._root, f"downloading {self.digest}") from error

    async def flush(self) -> None:
        """Returns when everything taken in is in the file."""
        await self._start_flush()
        await self._settle()

    async def restart(self) -> None:
        """Forgets everything taken in: the bytes were not those of the blob."""
        await self.flush()
        assert self._file is not None
        os.ftruncate(self._file, 0)
        self._hash = _new_hash(self.digest)
        self.available = 0
        self.on_restart()

    async def verify(self) -> None:
        """Checks size and digest of what came. FAILED verification is Code.ABORTED and forgets the bytes."""
        await self.flush()
        algorithm = self.digest.partition(":")[0]
        actual = f"{algorithm}:{self._hash.hexdigest()}"
        if self.available != self.size:
            text = f"blob {self.digest} has {self.available} bytes where its descriptor says {self.size}"
        elif actual != self.digest:
            text = f"blob {self.digest} is corrupt: its content has the digest {actual}"
        else:
            return
        await self.restart()
        raise CrispError(Code.ABORTED, text)

    def discard(self) -> None:
        """Removes the file's name; what is being written goes to nowhere. Blocking, but only for an unlink."""
        self._store.discard(self.path)

    async def end(self) -> None:
        """Closes the file, after the write in flight: its descriptor's number may be another file's at once."""
        flushing, self._flushing = self._flushing, None
        if flushing is not None:
            await asyncio.wait([flushing])
            flushing.exception()  # nobody waits for these bytes any more
        self.close()

    def close(self) -> None:
        """Closes the file, to which nothing is being written, and leaves it for the next try."""
        descriptor, self._file = self._file, None
        if descriptor is not None:
            os.close(descriptor)


def _close_unwanted(opening: asyncio.Future[Ingest]) -> None:
    """Close what was opened for somebody who has given up meanwhile; a file that nobody else will take up goes."""
    if not opening.cancelled() and opening.exception() is None:
        ingest = opening.result()
        ingest.close()
        if os.path.basename(ingest.path).startswith(_PUT):
            ingest.discard()


def _new_hash(digest: str) -> _Hash:
    return hashlib.new(digest.partition(":")[0])


def _file_name(digest: str) -> str:
    """A digest as the name of a file; INVALID_ARGUMENT for what is none, whoever let it come this far."""
    return check_digest(digest, "download").replace(":", "-")


def sync_directory(path: str) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(data: bytes, like: str = "sha256:") -> str:
    """The digest of bytes in hand, by the algorithm of another digest."""
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
