"""What disconnected pods have yet to give back: links, leases, addresses. It happens behind the answer to StopPodSandbox.

Deleting a pod's links takes the kernel 20 ms and more, in which it waits for others (RCU) and for nothing of the pod. Taking
the host's end down takes one. From then on nothing gets in or out, so that the pod is disconnected; its address is not given
to another before the links are gone, and its lease stands as long, so that whatever a crash leaves is found again.

    disconnect (builtin) ─▶ begin ─▶ links gone ─▶ lease and address given back
                                └── refused: tried again, for ever

Failpoint: network.unlinked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import chain, repeat
from typing import Final

import structlog

from kernel.failpoints import failpoint
from proto.errors import CrispError
from runtime.network import links
from runtime.network.leases import Lease
from runtime.network.teardown import LinkRemover

log = structlog.get_logger(__name__)

MAX_DEPARTURES: Final = 256
"""Pods that go at once; whoever disconnects more waits for theirs."""
PAUSES: Final = (0.2, 1.0, 5.0, 15.0, 60.0)
"""Seconds before each further try; the last counts for all that follow."""
ROOM_SECONDS: Final = 10.0
"""That whoever needs an address or a port of the bridge waits for pods that go."""
CLOSE_SECONDS: Final = 5.0
"""For all of them, when the daemon ends; the next one goes on."""


class Departures:
    """The pods that are disconnected, each with the task that gives back what it has."""

    def __init__(self, remover: LinkRemover, give_back: Callable[[str, Lease], Awaitable[None]]) -> None:
        self._remover = remover
        self._give_back = give_back
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, sandbox_id: str) -> bool:
        return sandbox_id in self._tasks

    @property
    def full(self) -> bool:
        """Whether no more are taken."""
        return len(self._tasks) >= MAX_DEPARTURES

    def begin(self, sandbox_id: str, lease: Lease) -> None:
        """Have the links of a pod deleted, and then its lease; its links are down."""
        task = asyncio.create_task(self._see_off(sandbox_id, lease))
        self._tasks[sandbox_id] = task

        def over(_task: object) -> None:
            if self._tasks.get(sandbox_id) is task:
                del self._tasks[sandbox_id]

        task.add_done_callback(over)

    async def _see_off(self, sandbox_id: str, lease: Lease) -> None:
        for pause in chain(PAUSES, repeat(PAUSES[-1])):
            try:
                await self._remover.remove(lease.links)
                failpoint("network.unlinked")
                await self._give_back(sandbox_id, lease)
            except (CrispError, *links.REFUSED) as error:
                log.warning("links of a stopped pod cannot be deleted yet", sandbox=sandbox_id, error=links.why(error))
            else:
                return
            await asyncio.sleep(pause)

    async def give_up(self, sandbox_id: str) -> None:
        """Leave it to the caller."""
        if (task := self._tasks.pop(sandbox_id, None)) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def make_room(self, deadline: float) -> bool:
        """Wait until one that is going has gone; False if none is, or does not before `deadline` (on the loop's clock).

        One is enough, for there may be others that cannot go.
        """
        left = deadline - asyncio.get_running_loop().time()
        if not self._tasks or left <= 0:
            return False
        gone, _ = await asyncio.wait(list(self._tasks.values()), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return bool(gone)

    async def close(self) -> None:
        """Let go of them, but let those go on that are about to be through."""
        if tasks := list(self._tasks.values()):
            _, late = await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
