"""Work that several callers want at once runs once, and stops when the last of them leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any


class Joins:
    """Running work by key.

    A caller that is cancelled leaves; the work is cancelled when nobody waits for it any more, and that last caller stays
    until its clean-up is over.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, tuple[asyncio.Task[Any], list[None]]] = {}

    def keys(self) -> list[Hashable]:
        """What runs now."""
        return list(self._running)

    async def run(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Joins the work under `key`, or starts it. Its result or its error goes to every caller."""
        while True:
            joined = self._running.get(key)
            if joined is None:
                task = asyncio.create_task(start())
                joined = self._running[key] = (task, [])
                task.add_done_callback(lambda _task: self._running.pop(key, None))
            task, waiters = joined
            if not task.cancelling():
                break
            # The last caller of this one has just left; what it leaves has to be gone before the work starts again.
            await asyncio.wait([task])
        waiters.append(None)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                raise
            if len(waiters) == 1:
                task.cancel()
                await asyncio.wait([task])
            raise
        finally:
            waiters.pop()

    async def close(self) -> None:
        """Cancels everything that runs, and waits for it."""
        tasks = [task for task, _waiters in self._running.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
