"""Blobs on their way from registries into the content store: each fetched once, however many pulls of a repository want it.

    async with downloads.hold(descriptor, fetch) as download:
        download.started / download.done / download.path / download.follow(callback)

Pulls of other repositories, and those with other credentials, have downloads of their own: a registry that denies, lies or
trickles is its own callers' trouble, and nobody gets bytes that his own registry has not given.

While anybody holds a download it runs; when the last one leaves, it is cancelled if it is not done, and its partial file
stays to be resumed. A blob that is done and that nobody published by then is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager

from imagesvc.manifests import Descriptor
from imagesvc.registry.access import Access
from imagesvc.registry.client import RegistryClient, backoff
from imagesvc.registry.errors import Kind, RegistryFailure, give_up
from imagesvc.store.content import ContentStore, Ingest
from imagesvc.transfer.sources import Source
from proto.errors import Code, CrispError

_ATTEMPTS = 5
"""Tries in a row of which none brings a byte, after which an endpoint is given up."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
"""Seconds."""


class Download:
    """One blob being fetched. `restarts` counts how often what had come turned out wrong: who read it has to start over."""

    def __init__(self, key: Hashable, descriptor: Descriptor, path: str) -> None:
        self.key = key
        self.path = path
        self.offset = 0
        self.digest = descriptor.digest
        self.size = descriptor.size
        self.started = asyncio.Event()
        self.done: asyncio.Future[None]
        self.holders = 0
        self.published = False
        self.restarts = 0
        self._available = 0
        self._followers: list[Callable[[int], None]] = []

    def opened(self, ingest: Ingest) -> None:
        """The file is there, with what an earlier try left of it."""
        ingest.on_available = self._tell
        ingest.on_restart = self._count_restart
        self._tell(ingest.available)

    def follow(self, callback: Callable[[int], None]) -> None:
        """Calls back with the bytes available, now and whenever there are more."""
        self._followers.append(callback)
        callback(self._available)

    def unfollow(self, callback: Callable[[int], None]) -> None:
        """Ends `follow`."""
        self._followers.remove(callback)

    def _count_restart(self) -> None:
        self.restarts += 1
        self._available = 0

    def _tell(self, available: int) -> None:
        self._available = available
        for callback in list(self._followers):
            callback(available)


class Downloads:
    """The running downloads of one node."""

    def __init__(self, store: ContentStore, client: RegistryClient) -> None:
        self._store = store
        self._client = client
        self._running: dict[Hashable, Download] = {}
        self._leaving: dict[Hashable, asyncio.Task[None]] = {}

    def paths(self) -> list[str]:
        """The files that are written now."""
        return [download.path for download in self._running.values()]

    @asynccontextmanager
    async def hold(self, descriptor: Descriptor, source: Source) -> AsyncIterator[Download]:
        """Joins or starts a download for as long as the context lasts."""
        key = (descriptor.digest, descriptor.size, source.reference.name, source.caller)
        while (leaving := self._leaving.get(key)) is not None:
            await asyncio.shield(leaving)
        download = self._running.get(key)
        if download is None:
            path = self._store.staged_path(descriptor.digest, repr(key[1:]))
            download = self._running[key] = Download(key, descriptor, path)
            download.done = asyncio.create_task(self._fetch(download, source))
        download.holders += 1
        try:
            yield download
        except CrispError as error:
            if error.code is Code.RESOURCE_EXHAUSTED:
                self._store.discard(download.path)
            raise
        finally:
            download.holders -= 1
            if not download.holders:
                del self._running[key]
                task = self._leaving[key] = asyncio.create_task(self._leave(download))
                await asyncio.shield(task)

    async def _leave(self, download: Download) -> None:
        try:
            download.done.cancel()
            await asyncio.wait([download.done])
            whole = not download.done.cancelled() and download.done.exception() is None
            if whole and not download.published:
                self._store.discard(download.path)
        finally:
            del self._leaving[download.key]

    async def _fetch(self, download: Download, source: Source) -> None:
        """Downloads to the end, from one endpoint after the other."""
        try:
            async with source.slots:
                ingest = await self._store.ingest(download.digest, download.size, download.path)
                try:
                    download.opened(ingest)
                    download.started.set()
                    await self._from_endpoints(ingest, source)
                finally:
                    await asyncio.shield(ingest.end())
        finally:
            download.started.set()

    async def _from_endpoints(self, ingest: Ingest, source: Source) -> None:
        failures: list[tuple[str, RegistryFailure]] = []
        for access in source.accesses:
            try:
                await self._whole(ingest, access)
            except RegistryFailure as failure:
                failures.append((str(access), failure))
            else:
                return
        raise give_up(f"blob {ingest.digest} of {source.reference}", failures)

    async def _whole(self, ingest: Ingest, access: Access) -> None:
        """The blob from one endpoint, verified. Bytes that were there before may be another's, or an earlier try's, and not
        the blob's: if all together are wrong, once more, this one's alone."""
        for last in (not ingest.received, True):
            await self._from_endpoint(ingest, access)
            try:
                await ingest.verify()
            except CrispError as error:
                if error.code is not Code.ABORTED:
                    raise
                if last:
                    raise RegistryFailure(Kind.BROKEN, error.message) from None
            else:
                return

    async def _from_endpoint(self, ingest: Ingest, access: Access) -> None:
        """Goes on where the download stands, again and again while that brings bytes."""
        barren = 0
        while ingest.received < ingest.size:
            before = ingest.received
            try:
                async with self._client.blob(access, ingest.digest, before, ingest.size) as (start, chunks):
                    skip = before - start
                    async for chunk in chunks:
                        if skip:
                            chunk, skip = chunk[skip:], max(0, skip - len(chunk))  # noqa: PLW2901
                        if ingest.received + len(chunk) > ingest.size:
                            await ingest.restart()
                            raise RegistryFailure(Kind.BROKEN, f"the blob has more than its {ingest.size} bytes")
                        if chunk:
                            await ingest.write(chunk)
                await ingest.flush()
                if ingest.received == before:
                    raise RegistryFailure(Kind.UNAVAILABLE, "the reply ended without a byte", 0.0)
            except RegistryFailure as failure:
                barren = 0 if ingest.received > before else barren + 1
                if failure.retry_after is None or barren >= _ATTEMPTS or access.budget.used_up:
                    raise
                pause = min(_FIRST_PAUSE * 2**barren, _LONGEST_PAUSE)
                await access.budget.pause(backoff(pause, failure.retry_after))
