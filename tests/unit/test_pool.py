"""A pool that is given no more threads by the kernel: who is refused can rely on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from runtime.pool import Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(4) as pool:
        yield pool


def test_one_that_is_shut_down() -> None:
    pool = Pool(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(int)


def no_thread(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_results_and_errors(pool: Pool) -> None:
    assert pool.submit(divmod, 7, 2).result(20) == (3, 1)
    assert pool.submit(int, "11", base=2).result(20) == 3
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 7, 0).result(20)


def test_a_shutdown_cancels_what_is_in_the_queue() -> None:
    gate, pool = threading.Event(), Pool(1)
    busy = pool.submit(gate.wait, 20)
    waiting = pool.submit(int)
    pool.shutdown(wait=False, cancel_futures=True)
    gate.set()
    assert busy.result(20)
    with pytest.raises(CancelledError):
        waiting.result(20)


def test_what_was_refused_is_not_done_afterwards(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun, done = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert gate.wait(20)

    busy = pool.submit(wait)
    assert begun.wait(20)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(BlockingIOError, match="the kernel gives no more threads"):
            pool.submit(done.set)
    gate.set()
    busy.result(20)
    pool.submit(int).result(20)  # whatever was in the queue was before this
    assert not done.is_set()


def test_what_a_thread_does_already_is_not_refused(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun, taken = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert gate.wait(20)

    busy = pool.submit(wait)
    assert begun.wait(20)

    def too_late(_thread: threading.Thread) -> None:
        gate.set()
        assert taken.wait(20)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", too_late)
    pool.submit(taken.set).result(20)
    busy.result(20)
