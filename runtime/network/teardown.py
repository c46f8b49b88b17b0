"""Deleting links, many at a time.

Deleting one veth pair takes the kernel 10 to 20 ms, nearly all of it waiting for RCU grace periods; deleting
a hundred in one request takes hardly longer. So whatever is asked for while one request is under way becomes
the next request.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Final

from runtime.network import links
from runtime.network.leases import SMALLEST_REMOVAL_GROUP
from runtime.network.netlink_thread import NetlinkThread

MAX_LINKS: Final = 64
"""Per request; the kernel's lock on all networking is held for as long as one takes."""


class LinkRemover:
    """Deletes links by name in batches, in a thread of its own."""

    def __init__(self) -> None:
        self._route = links.open_route()
        self._thread = NetlinkThread("unlink")
        self._waiting: list[tuple[Sequence[str], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def remove(self, names: Sequence[str]) -> None:
        """Delete links; those that do not exist are as good as deleted. Returns when they are gone."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((names, done))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        await done

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_LINKS], self._waiting[MAX_LINKS:]
                failures = await self._thread.run(self._delete([name for wanted, _ in batch for name in wanted]))
                for wanted, done in batch:
                    if done.done():
                        continue
                    if error := next((failures[name] for name in wanted if name in failures), None):
                        done.set_exception(error)
                    else:
                        done.set_result(None)
        finally:
            self._task = None

    async def _delete(self, names: list[str]) -> dict[str, Exception]:
        group = secrets.randbelow(0x7FFFFFFF - SMALLEST_REMOVAL_GROUP) + SMALLEST_REMOVAL_GROUP
        return await links.delete_links(self._route, names, group)

    async def close(self) -> None:
        """Finish what was asked for, then let go of the thread."""
        if self._task is not None:
            await self._task
        await self._thread.run(links.close(self._route))
        await self._thread.close()
