"""Deleting links, many at a time.

Deleting one veth pair takes the kernel 10 to 20 ms, nearly all of it waiting for RCU grace periods; deleting
a hundred in one request takes hardly longer. So whatever is asked for while one request is under way becomes
the next request.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from runtime.network import rtnetlink
from runtime.network.netlink import NETLINK_ROUTE, NetlinkSocket

MAX_LINKS: Final = 64
"""Per request; the kernel's lock on all networking is held for as long as one takes."""

_SMALLEST_GROUP: Final = 0x10000
"""Groups below are those that administrators name in /etc/iproute2/group."""


class LinkRemover:
    """Deletes links by name in batches, in a thread of its own."""

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_ROUTE)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="unlink")
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
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_LINKS], self._waiting[MAX_LINKS:]
                names = [name for wanted, _ in batch for name in wanted]
                try:
                    await loop.run_in_executor(self._thread, delete_links, self._netlink, names)
                except OSError as error:
                    outcome: OSError | None = error
                else:
                    outcome = None
                for _, done in batch:
                    if done.done():
                        continue
                    if outcome is None:
                        done.set_result(None)
                    else:
                        done.set_exception(outcome)
        finally:
            self._task = None

    async def close(self) -> None:
        """Finish what was asked for, then let go of the thread."""
        if self._task is not None:
            await self._task
        self._thread.shutdown()
        self._netlink.close()


def delete_links(netlink: NetlinkSocket, names: Sequence[str]) -> None:
    """Delete links by name in one go, by gathering them in a group that nobody else uses. Blocks."""
    group = secrets.randbelow(0x7FFFFFFF - _SMALLEST_GROUP) + _SMALLEST_GROUP
    found = 0
    for outcome in netlink.outcomes([rtnetlink.set_group(name, group) for name in names]):
        if outcome is None:
            found += 1
        elif outcome.errno != errno.ENODEV:
            raise outcome
    if found:
        [outcome] = netlink.outcomes([rtnetlink.delete_group(group)])
        if outcome is not None and outcome.errno != errno.ENODEV:
            raise outcome
