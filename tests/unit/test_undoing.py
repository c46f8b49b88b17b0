"""Undoing that fails is repeated until it works, is not needed any more, or the daemon ends."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from proto.errors import Code, CrispError
from runtime import undoing
from runtime.undoing import Undoing


class Leftover:
    """Goes at the n-th try."""

    def __init__(self, tries: int) -> None:
        self.tries = tries
        self.lock = asyncio.Lock()
        self.needed = True
        self.tried = asyncio.Event()
        self.gone = asyncio.Event()

    async def discard(self) -> None:
        assert self.lock.locked()
        self.tries -= 1
        self.tried.set()
        if self.tries:
            raise CrispError(Code.INTERNAL, "not yet") if self.tries % 2 else OSError(24, "Too many open files")
        self.gone.set()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undoing, "PAUSES", (0.0, 0.0))


async def undo(work: Undoing, leftover: Leftover) -> None:
    async with leftover.lock:
        await work.undo(leftover.discard, lambda: leftover.needed, leftover.lock, sandbox="s")


async def test_at_once() -> None:
    leftover = Leftover(1)
    await undo(Undoing(), leftover)
    assert leftover.gone.is_set()


async def test_again_and_again() -> None:
    work, leftover = Undoing(), Leftover(5)
    with capture_logs() as logs:
        await undo(work, leftover)
        await leftover.gone.wait()
        await work.close()
    assert [entry["event"] for entry in logs][:4] == ["cannot be undone yet"] * 4
    assert logs[0]["sandbox"] == "s"


async def test_not_needed_any_more() -> None:
    work, leftover = Undoing(), Leftover(1000)
    with capture_logs():
        await undo(work, leftover)
        leftover.needed = False
        tries = leftover.tries
        await asyncio.gather(*work._tasks)
    assert leftover.tries == tries


async def test_end_of_the_daemon() -> None:
    work, leftover = Undoing(), Leftover(-1)
    with capture_logs():
        await undo(work, leftover)
        await work.close()
    assert not leftover.gone.is_set()


async def test_what_is_a_bug_is_not_hidden() -> None:
    async def broken() -> None:
        raise ValueError

    lock = asyncio.Lock()
    async with lock:
        with pytest.raises(ValueError):
            await Undoing().undo(broken, lambda: True, lock)
