"""A thread for netlink.

Sending a netlink request blocks until the kernel has carried it out, which takes milliseconds, and much longer while
somebody else holds its lock on all networking. So pyroute2's asynchronous sockets do not run in the daemon's event loop
but in one of their own, in a thread of its own; what it is given to do is done in the order given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class NetlinkThread:
    """Runs coroutines one after the other. Sockets that they open belong to the network namespace in which the first of
    them was asked for."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._loop = asyncio.new_event_loop()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run one to its end, even if the caller is cancelled."""
        begun = self._executor.submit(self._loop.run_until_complete, work)
        return await asyncio.shield(asyncio.wrap_future(begun))

    async def close(self) -> None:
        """Wait for what is under way, then end the thread."""
        await self.run(asyncio.sleep(0))  # lets closed sockets settle
        self._executor.shutdown()
        self._loop.close()
