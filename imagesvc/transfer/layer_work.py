"""The layers of one image, all at once: what a pull and an import have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any

from imagesvc.manifests import Descriptor
from imagesvc.store.layers import Layer, LayerStore, chain_ids
from imagesvc.transfer.joins import Joins
from imagesvc.transfer.progress import LayerProgress, PullProgress
from imagesvc.transfer.unpacking import Incoming, Part, Unpacker, layer_error
from imagesvc.worker.pool import JobFailed
from proto.errors import Code, CrispError

HoldBlob = Callable[[Descriptor], AbstractAsyncContextManager[Incoming]]
"""Where a blob comes from: held, it is on its way."""


async def _always(_descriptor: Descriptor, _diff_id: str) -> bool:
    return True


def _nothing(_descriptor: Descriptor, _diff_id: str) -> None:
    pass


@dataclass(frozen=True)
class Blobs:
    """Where blobs come from, and what of the node's own the caller may have without that (proofs.py)."""

    hold: HoldBlob
    may_have: Callable[[Descriptor, str], Awaitable[bool]] = _always
    """Whether a layer that is here, by its blob and its diff id, is the caller's to have."""
    came: Callable[[Descriptor, str], None] = _nothing
    """A blob has come whole, and it is this diff id's."""


class LayerWork:
    """The layers of one pull, all at once. As a context: holds them until they are part of a record."""

    def __init__(
        self,
        layers: LayerStore,
        unpacker: Unpacker,
        joins: Joins,
        source: Blobs,
        progress: PullProgress,
        *,
        parallel: int,
        keep_blobs: bool = False,
    ) -> None:
        """`source` says where a blob comes from. It is let go once its layer is unpacked, before the disk has to write it,
        or, with `keep_blobs`, when the image is recorded. At most `parallel` layers are unpacked at a time.
        """
        self._layers = layers
        self._unpacker = unpacker
        self._joins = joins
        self._source = source
        self._progress = progress
        self._keep_blobs = keep_blobs
        self._slots = asyncio.Semaphore(parallel)
        self._blobs = AsyncExitStack()
        self._diff_ids: Sequence[str] = ()
        self._parts: list[Part] = []
        self.incoming: list[Incoming] = []
        """The blobs that had to come and are kept."""

    async def __aenter__(self) -> LayerWork:
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        await self._blobs.__aexit__(kind, error, trace)
        for part in self._parts:
            self._unpacker.drop(part)
        self._layers.unwant(self._diff_ids)

    async def all(self, descriptors: Sequence[Descriptor], diff_ids: Sequence[str]) -> list[Layer]:
        """Every layer, bottom first, unpacked. The first failure stops the others and is the one that is raised."""
        chain = chain_ids(diff_ids)
        self._diff_ids = diff_ids
        self._layers.want(diff_ids)
        self._progress.layers = [LayerProgress(d.digest, d.size) for d in descriptors]
        self._progress.changed()
        tasks: list[asyncio.Task[Layer]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for i, descriptor in enumerate(descriptors):
                    below = tasks[:]
                    tasks.append(
                        group.create_task(self._layer(descriptor, diff_ids[i], chain[i], below, self._progress.layers[i]))
                    )
        except BaseExceptionGroup as errors:
            raise _telling(errors) from None
        return [task.result() for task in tasks]

    async def _layer(
        self,
        descriptor: Descriptor,
        diff_id: str,
        chain_id: str,
        below: Sequence[Awaitable[Layer]],
        progress: LayerProgress,
    ) -> Layer:
        layer = self._layers.find(diff_id, chain_id)
        if layer is not None and await _lacks(layer, below):
            layer = self._layers.find_upon(chain_id)
        if layer is not None and await self._source.may_have(descriptor, diff_id):
            await self._settle(layer, chain_id, below)
            progress.state = "exists"
            progress.downloaded = progress.unpacked = progress.size
            self._progress.changed()
            return layer
        async with AsyncExitStack() as stack:
            blob = await stack.enter_async_context(self._source.hold(descriptor))
            layer = await self._from_blob(blob, diff_id, chain_id, below, progress)
            self._source.came(descriptor, diff_id)
            if self._keep_blobs:
                self.incoming.append(blob)
                self._blobs.push_async_exit(stack.pop_all())
        return layer

    async def _from_blob(
        self,
        blob: Incoming,
        diff_id: str,
        chain_id: str,
        below: Sequence[Awaitable[Layer]],
        progress: LayerProgress,
    ) -> Layer:
        def show(available: int) -> None:
            progress.downloaded = available
            progress.state = "downloading" if available < progress.size else "unpacking"
            self._progress.changed()

        blob.follow(show)
        try:
            layer = await self._unpack(blob, diff_id, chain_id, below, progress)
        finally:
            blob.unfollow(show)
        progress.state = "done"
        progress.downloaded = progress.unpacked = progress.size
        self._progress.changed()
        return layer

    async def _unpack(
        self,
        blob: Incoming,
        diff_id: str,
        chain_id: str,
        below: Sequence[Awaitable[Layer]],
        progress: LayerProgress,
    ) -> Layer:
        """First as if the layer stood on its own; if it does not, the rest of it, or all of it again, when the layers below
        are there."""

        def count(done: int) -> None:
            progress.unpacked = done
            self._progress.changed()

        async def alone() -> Layer | Part:
            made = await self._unpacker.unpack(blob, diff_id, chain_id, None, count)
            if isinstance(made, Part):
                self._parts.append(made)
            return made

        async def upon() -> Layer | Part:
            if part is not None and (completed := await self._unpacker.complete(part, lower)) is not None:
                return completed
            return await self._unpacker.unpack(blob, diff_id, chain_id, lower, count)

        await blob.started.wait()
        made: Layer | Part | None = None
        try:
            async with self._slots:
                made = await self._joins.run(("layer", blob.key, diff_id, chain_id), alone)
        except JobFailed as failure:
            if failure.kind != "needs_lower":
                raise layer_error(failure, blob.digest, self._layers.root) from None
        part = made if isinstance(made, Part) else None
        if part is not None:
            self._parts.append(part)  # also if another pull had begun it, and has left since
        layer = made if isinstance(made, Layer) else None
        if layer is None or await _lacks(layer, below):
            lower = [await task for task in below][::-1]
            try:
                async with self._slots:
                    layer = await self._joins.run(("chain", blob.key, chain_id), upon)
            except JobFailed as again:
                raise layer_error(again, blob.digest, self._layers.root) from None
        await asyncio.shield(blob.done)
        await self._settle(layer, chain_id, below)
        return layer

    async def _settle(self, layer: Layer, chain_id: str, below: Sequence[Awaitable[Layer]]) -> None:
        """Whiteouts are settled when the layers below are there, by whichever pull comes first."""
        if layer.settled:
            return
        lower = [await task for task in below][::-1]

        async def settle() -> None:
            await self._unpacker.settle(layer, lower)

        try:
            await self._joins.run(("settle", chain_id), settle)
        except JobFailed as failure:
            raise layer_error(failure, layer.info.diff_id, self._layers.root) from None


async def _lacks(layer: Layer, below: Sequence[Awaitable[Layer]]) -> bool:
    """Whether it was unpacked alone where directories below it have attributes that its own ones may have to inherit."""
    return layer.info.alone and any([(await task).info.attributed for task in below])


def _telling(errors: BaseExceptionGroup[Any]) -> BaseException:
    """The error of a group that says most: a known failure before a cancellation, a full disk before others."""
    flat: list[BaseException] = []
    stack: list[BaseException] = [errors]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack += error.exceptions
        else:
            flat.append(error)
    full = [e for e in flat if isinstance(e, CrispError) and e.code is Code.RESOURCE_EXHAUSTED]
    return (full or [e for e in flat if isinstance(e, CrispError)] or flat)[0]
