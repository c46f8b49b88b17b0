"""Unpacking one downloaded layer in a worker, in step with its blob."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from imagesvc.disk_errors import disk_error
from imagesvc.limits import Limits
from imagesvc.store.layers import EROFS, Layer, LayerStore
from imagesvc.uninterrupted import to_its_end
from imagesvc.worker.pool import Job, JobFailed, WorkerPool
from proto.errors import Code, CrispError, invalid

_MAX_TRIES = 3
_WINDOW_SECONDS = 2.0
_WINDOW_BYTES = 64 << 10
"""A download that brings less than this in a window is not unpacked on its way: a worker, of which there are so many, would
wait for it. Its layer is unpacked once it is whole."""


class Incoming(Protocol):
    """A blob that is on its way into a file, or there already."""

    key: Hashable
    """The same for the same blob of the same source: work on it is shared by no others."""
    path: str
    offset: int
    """Where in the file the blob begins."""
    digest: str
    size: int
    started: asyncio.Event
    """Set when there is something to read, or never will be."""
    done: asyncio.Future[None]
    """Ends when the blob is whole and its digest is right, or with why it is not."""
    restarts: int
    """How often what had come turned out wrong: who has read it starts over."""

    def follow(self, callback: Callable[[int], None]) -> None:
        """Calls back with the bytes available, now and whenever there are more."""
        ...

    def unfollow(self, callback: Callable[[int], None]) -> None:
        """Ends `follow`."""
        ...


class _StalledError(Exception):
    """The download stood still and is whole now: what has been unpacked of it goes, and all is unpacked at once."""


class Part:
    """A file that has a layer's contents and lacks the tree, for which the layers below are needed (waiting.py)."""

    def __init__(self, path: str, result: dict[str, Any], diff_id: str, chain_id: str) -> None:
        self.path = path
        self.result = result
        self.diff_id = diff_id
        self.chain_id = chain_id
        self.taken = False


class Unpacker:
    """Turns downloads into staged layers."""

    def __init__(self, layers: LayerStore, workers: WorkerPool, limits: Limits) -> None:
        self._layers = layers
        self._workers = workers
        self._limits = limits

    async def unpack(
        self,
        blob: Incoming,
        diff_id: str,
        chain_id: str,
        lower: Sequence[Layer] | None,
        progress: Callable[[int], None],
    ) -> Layer | Part:
        """Unpacks and stages a layer; `lower` has the layers below, topmost first, None for "as if it stood alone".

        A file that needs the layers below is a part without them, for `complete` or `drop`.

        Raises:
            JobFailed: as the job says, `needs_lower` among others.
            CrispError: the download's own failure; ABORTED where the content has another diff id.
        """
        tries = 0
        while True:
            restarts = blob.restarts
            target = self._layers.new_file() if self._layers.form == EROFS else self._layers.new_directory()
            kept = False
            try:
                result = await self._run(blob, target, lower, progress)
                if result["diff_id"] != diff_id:
                    raise CrispError(
                        Code.ABORTED,
                        f"layer {blob.digest} unpacks to {result['diff_id']} where the image's configuration says {diff_id}",
                    )
                made: Layer | Part
                if result.get("waits"):
                    made = Part(target, result, diff_id, chain_id)
                else:
                    made = self._layers.stage(target, result, diff_id, chain_id)
                kept = True
            except _StalledError:
                continue
            except (JobFailed, CrispError) as failure:
                if not _may_pass(failure, tries):
                    raise
                # What was read may have been bytes that turned out not to be the blob's: its own error comes first.
                await asyncio.shield(blob.done)
                if blob.restarts == restarts and not _is_missing(failure):
                    raise
                tries += 1
            else:
                return made
            finally:
                if not kept:
                    self._layers.remove_directories([target])

    async def complete(self, part: Part, lower: Sequence[Layer]) -> Layer | None:
        """Gives a part its tree and stages it; None if it is gone, or a layer below was just being renamed.

        Raises:
            JobFailed: as the job says.
        """
        if part.taken:
            return None
        part.taken = True
        kept = False
        request = {
            "job": "complete",
            "target": part.path,
            "lower": [layer.lower for layer in lower],
            "limits": asdict(self._limits),
        }
        try:
            result = part.result | await self._workers.run(request)
            layer = self._layers.stage(part.path, result, part.diff_id, part.chain_id)
            kept = True
        except JobFailed as failure:
            if not _is_missing(failure):
                raise
            return None
        else:
            return layer
        finally:
            if not kept:
                self._layers.remove_directories([part.path])

    def drop(self, part: Part) -> None:
        """Nobody will complete it."""
        if not part.taken:
            part.taken = True
            self._layers.remove_directories([part.path])

    async def settle(self, layer: Layer, lower: Sequence[Layer]) -> None:
        """Finishes a layer that was unpacked alone and has whiteouts, now that those below are there.

        To its end, whoever leaves: half of it, nobody could take up. Raises JobFailed as the job says.
        """
        tries = 0
        while not layer.settled:
            try:
                await to_its_end(self._settle(layer, lower))
            except JobFailed as failure:  # before anything is done, if a layer below was just being renamed
                if not _is_missing(failure) or (tries := tries + 1) > _MAX_TRIES:
                    raise

    async def _settle(self, layer: Layer, lower: Sequence[Layer]) -> None:
        directories = [below.lower for below in lower]
        await self._workers.run({"job": "settle", "target": layer.path, "lower": directories})
        layer.settled = True

    async def _run(
        self, blob: Incoming, target: str, lower: Sequence[Layer] | None, progress: Callable[[int], None]
    ) -> dict[str, Any]:
        """The job in step with a download that runs well, else when it is whole."""
        pace = _Pace(blob)
        with pace:
            await pace.began()
            result = await self._attempt(blob, target, lower, progress, pace)
            if result is not None:
                return result
        await asyncio.shield(blob.done)
        raise _StalledError

    async def _attempt(
        self,
        blob: Incoming,
        target: str,
        lower: Sequence[Layer] | None,
        progress: Callable[[int], None],
        pace: _Pace | None,
    ) -> dict[str, Any] | None:
        """One run of the job; it is stopped when the download fails, and, with None, when it stalls."""
        job = Job(progress)
        request = {
            "job": "unpack",
            "file": blob.path,
            "offset": blob.offset,
            "target": target,
            "form": self._layers.form,
            "patient": lower is None,
            "lower": None if lower is None else [layer.lower for layer in lower],
            "limits": asdict(self._limits),
        }
        size = blob.size

        def tell(available: int) -> None:
            job.available(available, size)

        blob.follow(tell)
        running: asyncio.Future[dict[str, Any]] = asyncio.create_task(self._workers.run(request, job))
        stalled = asyncio.create_task(pace.stalls()) if pace is not None else None
        try:
            either: set[asyncio.Future[Any]] = {running, blob.done}
            if stalled is not None:
                either.add(stalled)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and blob.done.done() and (blob.done.cancelled() or blob.done.exception()):
                blob.done.result()
            if stalled is not None and stalled.done() and not running.done() and not blob.done.done():
                return None
            return await running
        finally:
            blob.unfollow(tell)
            if stalled is not None:
                stalled.cancel()
            running.cancel()
            await asyncio.wait([running])


class _Pace:
    """How a download gets on. As a context: watches it."""

    def __init__(self, blob: Incoming) -> None:
        self._blob = blob
        self._available = 0
        self._more = asyncio.Event()

    def __enter__(self) -> None:
        self._blob.follow(self._note)

    def __exit__(self, *_error: object) -> None:
        self._blob.unfollow(self._note)

    def _note(self, available: int) -> None:
        self._available = available
        self._more.set()

    async def began(self) -> None:
        """Returns when the first bytes are there, or the download is over: until then a worker has nothing to do."""
        while self._available == 0 and not self._blob.done.done() and self._blob.size:
            self._more.clear()
            waiter = asyncio.ensure_future(self._more.wait())
            either: set[asyncio.Future[Any]] = {waiter, self._blob.done}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiter.cancel()

    async def stalls(self) -> None:
        """Returns when the download has brought too little for a while."""
        before = self._available
        while True:
            await asyncio.sleep(_WINDOW_SECONDS)
            if abs(self._available - before) < _WINDOW_BYTES and self._available < self._blob.size:
                return
            before = self._available


def _may_pass(failure: JobFailed | CrispError, tries: int) -> bool:
    """Whether unpacking again could go better: damaged bytes, or a lower layer that was just being renamed."""
    if isinstance(failure, CrispError):
        return failure.code is Code.ABORTED and tries < _MAX_TRIES
    return (failure.kind == "bad" or _is_missing(failure)) and tries < _MAX_TRIES


def _is_missing(failure: JobFailed | CrispError) -> bool:
    return isinstance(failure, JobFailed) and failure.kind == "os" and failure.errno == errno.ENOENT


def layer_error(failure: JobFailed, digest: str, directory: str) -> CrispError:
    """A job's failure for the person who pulls. Paths that a job names are seen from inside its chroot."""
    if failure.kind == "os":
        what = f"{failure.path.lstrip('/')} of layer {digest}" if failure.path.strip("/") else f"layer {digest}"
        return disk_error(OSError(failure.errno, failure.message), directory, f"unpacking {what}")
    if failure.kind == "defect":
        return CrispError(Code.INTERNAL, f"layer {digest} cannot be unpacked: {failure.message}")
    return invalid(f"layer {digest} cannot be unpacked: {failure.message}")
