"""Handlers of signals, set at less cost than by the `signal` module.

`signal.signal` makes enums of numbers and handlers, before and after. Each object that a forked process looks at is on a
page that it has to copy, for the count of references is in the object: that was 60 KiB of every shim.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # which `signal` is made of
from collections.abc import Callable
from typing import Any, Final

DEFAULT: Final = 0
"""SIG_DFL as a number."""
set_handler: Callable[[int, Callable[[int, Any], Any] | int], Any] = _signal.signal
"""`signal.signal` with plain numbers."""
