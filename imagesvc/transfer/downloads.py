"""Blobs on their way from registries into the content store: each fetched once, however many pulls want it.

    async with downloads.hold(descriptor, fetch) as download:
        download.started / download.done / download.path / download.follow(callback)

While anybody holds a download it runs; when the last one leaves, it is cancelled if it is not done, and its partial file
stays to be resumed. A blob that is done and that nobody published by then is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
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

    def __init__(self, ingest: Ingest) -> None:
        self.ingest = ingest
        self.path = ingest.path
        self.offset = 0
        self.digest = ingest.digest
        self.size = ingest.size
        self.started = asyncio.Event()
        self.done: asyncio.Future[None]
        self.holders = 0
        self.published = False
        self._followers: list[Callable[[int], None]] = []
        self.restarts = 0
        ingest.on_available = self._tell
        ingest.on_restart = self._count_restart

    def follow(self, callback: Callable[[int], None]) -> None:
        """Calls back with the bytes available, now and whenever there are more."""
        self._followers.append(callback)
        callback(self.ingest.available)

    def unfollow(self, callback: Callable[[int], None]) -> None:
        """Ends `follow`."""
        self._followers.remove(callback)

    def _count_restart(self) -> None:
        self.restarts += 1

    def _tell(self, available: int) -> None:
        for callback in list(self._followers):
            callback(available)


class Downloads:
    """The running downloads of one node."""

    def __init__(self, store: ContentStore, client: RegistryClient) -> None:
        self._store = store
        self._client = client
        self._running: dict[str, Download] = {}
        self._opening = asyncio.Lock()

    def digests(self) -> list[str]:
        """What is held now."""
        return list(self._running)

    @asynccontextmanager
    async def hold(self, descriptor: Descriptor, source: Source) -> AsyncIterator[Download]:
        """Joins or starts a download for as long as the context lasts."""
        digest = descriptor.digest
        async with self._opening:
            download = self._running.get(digest)
            if download is None:
                download = Download(await self._store.ingest(digest, descriptor.size))
                download.done = asyncio.create_task(self._fetch(download, source))
                self._running[digest] = download
            download.holders += 1
        try:
            yield download
        except CrispError as error:
            if error.code is Code.RESOURCE_EXHAUSTED:
                download.ingest.discard()
            raise
        finally:
            download.holders -= 1
            if not download.holders:
                await asyncio.shield(self._leave(digest, download))

    async def _leave(self, digest: str, download: Download) -> None:
        async with self._opening:
            if download.holders:
                return
            self._running.pop(digest, None)
            download.done.cancel()
            await asyncio.wait([download.done])
            whole = not download.done.cancelled() and download.done.exception() is None
            if whole and not download.published:
                download.ingest.discard()
            await download.ingest.end()

    async def _fetch(self, download: Download, source: Source) -> None:
        """Downloads to the end, from one endpoint after the other."""
        try:
            async with source.slots:
                download.started.set()
                await self._from_endpoints(download, source)
        finally:
            download.started.set()

    async def _from_endpoints(self, download: Download, source: Source) -> None:
        ingest = download.ingest
        failures: list[tuple[str, RegistryFailure]] = []
        for access in source.accesses:
            try:
                await self._from_endpoint(ingest, access)
                await ingest.verify()
            except RegistryFailure as failure:
                failures.append((str(access), failure))
            except CrispError as error:
                if error.code is not Code.ABORTED:
                    raise
                failures.append((str(access), RegistryFailure(Kind.BROKEN, error.message)))
            else:
                return
        raise give_up(f"blob {ingest.digest} of {source.reference}", failures)

    async def _from_endpoint(self, ingest: Ingest, access: Access) -> None:
        """Goes on where the download stands, again and again while that brings bytes."""
        barren = 0
        while ingest.received < ingest.size:
            before = ingest.received
            try:
                async with self._client.blob(access, ingest.digest, before) as (start, chunks):
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
                if failure.retry_after is None or barren >= _ATTEMPTS or access.budget.left <= 0:
                    raise
                pause = min(_FIRST_PAUSE * 2**barren, _LONGEST_PAUSE)
                await access.budget.pause(backoff(pause, failure.retry_after))
