"""Work in a thread that is started for it and ends with it, for what cannot be taken back: joining namespaces."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """Call `work` in a thread of its own, about 0.1 ms, and return its result. Blocks until it is done.

    unshare(2) and setns(2) change one thread, and one that could not be brought back would go on to do the process's work in
    a pod's namespaces. So it is never brought back: it ends with what it was made for. Raises OSError, EAGAIN, if the kernel
    gives no thread.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def thread() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # carried over to the caller
            failure.append(error)

    worker = threading.Thread(target=thread, name="apart")
    try:
        worker.start()
    except RuntimeError as error:
        raise reason(error) from error
    worker.join()
    if failure:
        raise failure[0]
    return outcome[0]


def reason(error: RuntimeError) -> Exception:
    """Of a thread that could not be started: what clone(2) has said to Python, which makes no OSError of it."""
    if str(error) != "can't start new thread":
        return error
    return OSError(errno.EAGAIN, "the kernel gives no more threads")
