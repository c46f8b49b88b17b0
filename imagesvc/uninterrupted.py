"""Steps that are done as a whole, whoever waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """Do it to its end; a caller that is cancelled meanwhile is so when it is done, however it has ended.

    What runs on an executor cannot be called back: who goes on without waiting for it would undo what is still being done.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # nobody hears of it
        raise cancelled
    return task.result()
