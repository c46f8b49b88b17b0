"""A retry joins: the second call with the same key waits for the first and gets its result (docs/architecture.md, rule 2).

Work is keyed by what the caller names, runs as a task of its own, and goes on when every caller has given up: the kubelet
comes back with the same attempt and must find either the work or its result, never "name is reserved".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Joiner:
    """Runs one piece of work per key at a time."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Start the work, or join it if it runs; cancelling the caller does not cancel the work."""
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(work())
            self._running[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        result: T = await asyncio.shield(task)
        return result

    def _finished(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, though every caller may be gone

    async def settle(self, seconds: float) -> None:
        """Wait for what runs, at most this long, then cancel it."""
        if tasks := list(self._running.values()):
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
