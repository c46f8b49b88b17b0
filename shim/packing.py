"""What makes a forked process's memory small: that the objects it makes lie together.

CPython's allocator (Objects/obmalloc.c) has pools of 16 KiB for each size of object. Those that were there before a fork
have holes, where something was freed after an import; an object that goes into a hole has its page copied. So the holes
are filled before the fork: what a child makes is then in pools that are new, one page of each size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

POOL: Final = 1 << 14  # bytes
HEADER: Final = 48  # bytes of a pool before its first object
SMALLEST, LARGEST, STEP = 48, 512, 16  # bytes; beyond the largest it is malloc's
_BYTES = 33  # of a bytes object without any
MOST: Final = 2 << 20  # bytes: far more than there are holes, should the allocator be another one

_filling: list[Any] = []
"""Never looked at again."""


def fill_holes() -> None:
    """Make objects of each size until they begin a pool of their own."""
    makers: list[Callable[[], Any]] = [object, lambda: len(_filling) + 0.5]
    makers += [partial(bytes, size - _BYTES) for size in range(SMALLEST, LARGEST + 1, STEP)]
    size = 0
    for make in makers:
        while id(made := make()) % POOL != HEADER:
            size += sys.getsizeof(made)
            if size > MOST:
                return
            _filling.append(made)
