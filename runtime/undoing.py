"""What a failed call has left is undone: at once or, where that fails too, again and again.

The client may never come back for it, and nobody can see it: an object that was not finished is in no list. Undoing fails
where a process does not die, a network plugin does not answer, or the host is out of descriptors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import chain, repeat
from typing import Final

import structlog

from proto.errors import CrispError

log = structlog.get_logger(__name__)

PAUSES: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds before each further try; the last counts for all that follow."""


class Undoing:
    """Undoes, and remembers what it could not undo yet."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def undo(
        self, discard: Callable[[], Awaitable[None]], needed: Callable[[], bool], lock: asyncio.Lock, **about: str
    ) -> None:
        """Discard something. Raises nothing of it, so that the caller can tell why there is something to undo.

        The caller holds the lock; further tries take it, and stop once they are not `needed`. Cancelling the caller does
        not cancel the work.
        """
        try:
            await asyncio.shield(asyncio.ensure_future(discard()))
        except (CrispError, OSError) as error:
            log.warning("cannot be undone yet", error=str(error), **about)
            task = asyncio.create_task(self._again(discard, needed, lock, about))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _again(
        self, discard: Callable[[], Awaitable[None]], needed: Callable[[], bool], lock: asyncio.Lock, about: dict[str, str]
    ) -> None:
        for pause in chain(PAUSES, repeat(PAUSES[-1])):
            await asyncio.sleep(pause)
            async with lock:
                if not needed():
                    return
                try:
                    await discard()
                except (CrispError, OSError) as error:
                    log.warning("cannot be undone yet", error=str(error), **about)
                else:
                    log.info("undone", **about)
                    return

    async def close(self) -> None:
        """Try no more; the next start goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
