"""What containers' writable layers take of the disk: by the file system's project quota where it has one, else counted.

Counting is paid by whoever asks, and capped: a layer counts as known for ten seconds and for twenty times as long as its
count has taken; counts run one after the other, in slices of a thread of the pool, for at most a quarter of the time.
Who asks gets what is known; only for a layer that was never counted does he wait, and not for long. Nothing happens while
nobody asks, and the layer of a container that has ended is counted once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kernel import project_quota
from kernel.disk_usage import Walk

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container
    from runtime.records import ContainerRecord

FRESH_SECONDS: Final = 10.0
FRESH_COSTS: Final = 20.0
"""A count stays valid for this many times what it has cost."""
SLICE_SECONDS: Final = 0.01
REST_SECONDS: Final = 0.03
"""After each slice."""
FIRST_SECONDS: Final = 1.0
"""How long a reply may be held up by layers that were never counted."""


FIRST_PROJECT: Final = 1 << 20
"""Projects below are left to administrators."""


def start_counting(node: Node, record: ContainerRecord) -> None:
    """Give a new writable layer a quota project, if its file system counts by project."""
    if not node.host.has_project_quota:
        return
    taken = {container.record.project for container in node.containers.values()}
    record.project = next(number for number in itertools.count(FIRST_PROJECT) if number not in taken)
    project_quota.assign(str(node.paths.writable_layer(record.id)), record.project)


@dataclass(frozen=True, slots=True)
class Counted:
    """A writable layer as it was at `at` (nanoseconds since the epoch)."""

    bytes: int
    inodes: int
    at: int
    good_until: float
    """time.monotonic()"""
    final: bool
    """The container has ended before it was counted."""


@dataclass(slots=True)
class _Count:
    container_id: str
    walk: Walk
    final: bool
    cost: float = 0.0


class LayerUsage:
    """Counts, remembered."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._known: dict[str, Counted] = {}
        self._pending: dict[str, _Count] = {}
        self._queue: deque[_Count] = deque()
        self._task: asyncio.Task[None] | None = None

    async def of(self, containers: Iterable[Container]) -> dict[str, Counted]:
        """What is known of these, by id; out-of-date counts are renewed for the next time."""
        now, wait, ids = time.monotonic(), False, []
        for container in containers:
            key = container.record.id
            ids.append(key)
            if container.record.project:
                self._known[key] = self._by_quota(container)
                continue
            known = self._known.get(key)
            if known is None or known.good_until < now or (container.gone.is_set() and not known.final):
                self._ask(container)
                wait = wait or known is None
        if wait and self._task is not None:
            await asyncio.wait((self._task,), timeout=FIRST_SECONDS)
        return {key: known for key in ids if (known := self._known.get(key)) is not None}

    def _by_quota(self, container: Container) -> Counted:
        """One system call, whatever the layer holds."""
        record = container.record
        counted = project_quota.usage(str(self._node.paths.writable_layers), record.project)
        return Counted(counted.bytes, counted.inodes, time.time_ns(), float("inf"), container.gone.is_set())

    def close(self) -> None:
        """Stop counting."""
        if self._task is not None:
            self._task.cancel()

    def _ask(self, container: Container) -> None:
        key = container.record.id
        if key in self._pending:
            return
        upper = str(self._node.paths.writable_layer(key) / "upper")
        self._pending[key] = count = _Count(key, Walk(upper), container.gone.is_set())
        self._queue.append(count)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="layer usage")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                await loop.run_in_executor(self._node.blocking, self._slice)
                if not self._queue:
                    return
                await asyncio.sleep(REST_SECONDS)
        finally:
            self._task = None
            self._queue.clear()
            self._pending.clear()
            for gone in self._known.keys() - self._node.containers.keys():
                del self._known[gone]

    def _slice(self) -> None:
        """Count for one slice of time. Runs in the pool, one at a time."""
        deadline = time.monotonic() + SLICE_SECONDS
        while self._queue and (begin := time.monotonic()) < deadline:
            count = self._queue[0]
            done = count.walk.step(deadline - begin)
            now = time.monotonic()
            count.cost += now - begin
            if done:
                good = float("inf") if count.final else now + max(FRESH_SECONDS, FRESH_COSTS * count.cost)
                self._known[count.container_id] = Counted(
                    count.walk.bytes, count.walk.inodes, time.time_ns(), good, count.final
                )
                self._queue.popleft()
                self._pending.pop(count.container_id, None)
