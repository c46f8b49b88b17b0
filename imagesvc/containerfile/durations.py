"""Durations as Go writes them: `1m30s`, `500ms`, `1.5h`."""

from __future__ import annotations

import re
from typing import Final

from imagesvc.containerfile.flags import Flags

_UNITS: Final = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART: Final = r"([0-9]{1,18})(?:\.([0-9]{1,18}))?(ns|us|µs|μs|ms|s|m|h)"
_LONGEST: Final = (1 << 63) - 1
_SHORTEST: Final = 10**6
"""docker's: a millisecond."""


def parse_duration(flags: Flags, name: str, text: str) -> int:
    """Nanoseconds; 0 for an empty text."""
    if text in ("", "0"):
        return 0
    if not re.fullmatch(f"(?:{_PART})+", text):
        raise flags.error(f"{name} is to be a duration like 30s or 1m30s, and is {text!r}")
    total = 0
    for whole, fraction, unit in re.findall(_PART, text):
        total += int(whole) * _UNITS[unit] + int(fraction or 0) * _UNITS[unit] // 10 ** len(fraction)
    if total and not _SHORTEST <= total <= _LONGEST:
        raise flags.error(f"{name} is to be a millisecond at least, and no more than 292 years")
    return total
