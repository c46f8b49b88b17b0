"""Waiting until something is so, with a deadline."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

PATIENCE = int(os.environ.get("CRISP_PATIENCE", "1"))
"""By how much this machine is slower than others: an emulated one."""
WAIT_SECONDS = 60 * PATIENCE


def wait_until(condition: Callable[[], object], seconds: float = WAIT_SECONDS, pause: float = 0.02) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come to be so"
        time.sleep(pause)


async def until(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """The same beside what else the event loop does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come to be so"
        await asyncio.sleep(0.01)
