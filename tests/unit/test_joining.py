"""A retry joins the work that runs; nobody's impatience ends it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from imagesvc.uninterrupted import to_its_end
from runtime.joining import Joiner


async def test_second_call_gets_the_first_ones_result() -> None:
    joiner, gate, runs = Joiner(), asyncio.Event(), []

    async def work() -> str:
        runs.append(1)
        await gate.wait()
        return "done"

    first = asyncio.create_task(joiner.run("k", work))
    second = asyncio.create_task(joiner.run("k", work))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert await second == "done"
    assert runs == [1]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_work_outlives_all_callers() -> None:
    joiner, gate, finished = Joiner(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        finished.set()

    caller = asyncio.create_task(joiner.run("k", work))
    await asyncio.sleep(0)
    caller.cancel()
    gate.set()
    await finished.wait()


async def test_failure_is_shared_and_forgotten() -> None:
    joiner = Joiner()

    async def fail() -> None:
        raise ValueError("no")

    results = await asyncio.gather(joiner.run("k", fail), joiner.run("k", fail), return_exceptions=True)
    assert [str(r) for r in results] == ["no", "no"]

    async def fine() -> int:
        return 7

    assert await joiner.run("k", fine) == 7


async def test_settle_cancels_what_is_late() -> None:
    joiner = Joiner()
    caller = asyncio.create_task(joiner.run("k", asyncio.Event().wait))
    await asyncio.sleep(0)
    await joiner.settle(0)
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_who_is_cancelled_waits_for_a_thread_all_the_same() -> None:
    go, ended = threading.Event(), []

    def work() -> None:
        go.wait()
        ended.append(1)

    task = asyncio.create_task(to_its_end(asyncio.get_running_loop().run_in_executor(None, work)))
    await asyncio.sleep(0)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [1]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_failure_in_a_thread_is_told_to_who_was_not_cancelled(cancelled: bool) -> None:
    go = threading.Event()

    def work() -> None:
        go.wait()
        raise ValueError

    task = asyncio.create_task(to_its_end(asyncio.get_running_loop().run_in_executor(None, work)))
    await asyncio.sleep(0)
    if cancelled:
        task.cancel()
        await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError if cancelled else ValueError):
        await task
