"""The signal that asks a container to end.

CRI's Signal is mapped by number: its names changed with Kubernetes 1.37. Image configurations name signals as kill(1) does.
"""

from __future__ import annotations

import re
import signal
from typing import Final

from proto import api_pb2 as cri
from proto.errors import invalid

_NAME: Final = re.compile(r"SIGNAL_SIG((?:RTMIN|RTMAX)(?=$|PLUS|MINUS)|[A-Z]+[0-9]?$)(?:(PLUS|MINUS)([0-9]+))?$")

ALIASES: Final = {"CLD": signal.SIGCHLD, "IOT": signal.SIGABRT, "POLL": signal.SIGIO}


def _number(name: str) -> int:
    """Number on this machine of a signal that is named without SIG: TERM, RTMIN+3, RTMAX-1."""
    match = re.fullmatch(r"(RTMIN|RTMAX)([+-][0-9]+)?", name)
    if match:
        base = signal.SIGRTMIN if match[1] == "RTMIN" else signal.SIGRTMAX
        number = base + int(match[2] or 0)
        if not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            raise invalid(f"unknown signal SIG{name}")
        return number
    if name in ALIASES:
        return int(ALIASES[name])
    try:
        return int(signal.Signals[f"SIG{name}"])
    except KeyError:
        raise invalid(f"unknown signal SIG{name}") from None


def _table() -> dict[int, int]:
    numbers = {}
    for value in cri.Signal.DESCRIPTOR.values:
        if match := _NAME.match(value.name):
            sign = {"PLUS": "+", "MINUS": "-"}.get(match[2] or "", "")
            numbers[value.number] = _number(match[1] + (sign + match[3] if sign else ""))
    return numbers


BY_CRI_NUMBER: Final = _table()
"""Signal number of this machine by the number of CRI's enum."""

TO_CRI: Final = {number: value for value, number in reversed(BY_CRI_NUMBER.items())}
"""The reverse; of two CRI names for one signal the first."""


def parse(name: str) -> int:
    """A signal as an image names it: SIGTERM, TERM, 15, SIGRTMIN+3."""
    text = name.strip().upper()
    if text.isdecimal():
        number = int(text)
        if not 1 <= number <= signal.SIGRTMAX:
            raise invalid(f"unknown signal {name}")
        return number
    return _number(text.removeprefix("SIG"))


def choose(requested: int, image: str) -> int:
    """The request's signal, else the image's, else SIGTERM."""
    if requested != cri.SIGNAL_RUNTIME_DEFAULT:
        if requested not in BY_CRI_NUMBER:
            raise invalid(f"unknown stop signal {requested}")
        return BY_CRI_NUMBER[requested]
    return parse(image) if image else int(signal.SIGTERM)
