"""A pool of threads that does a thing, or says that it does not: the standard library's may do both."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from kernel import own_thread

P = ParamSpec("P")
T = TypeVar("T")


class Pool(ThreadPoolExecutor):
    """One whose `submit` raises OSError, EAGAIN, for want of a thread, and only of what nobody will do.

    Python's puts a thing into the queue before it starts a thread for it. Where the kernel gives none it raises, the caller
    undoes what was begun, and then a thread that is there already does what is in the queue.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the base class's."""
        future: Future[T] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)

        def over(queued: Future[None]) -> None:
            if queued.cancelled():  # by `shutdown`
                future.cancel()

        try:
            super().submit(work).add_done_callback(over)
        except RuntimeError as error:
            if future.cancel():  # else a thread does it already
                raise own_thread.reason(error) from error
        return future
