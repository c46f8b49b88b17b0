"""Preloaded into a fork server beside its jobs, it has them say on stderr what they import after they were forked."""

from __future__ import annotations

import os
import sys
from typing import Any

SIGN = "imported after the fork: "

_SERVER = os.getpid()
_heard: list[str] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "import" and os.getpid() != _SERVER:
        _heard.append(arguments[0])
        os.write(2, f"{SIGN}{arguments[0]}\n".encode())


sys.addaudithook(_hear)


def late(_args: object, _fds: object, _report: object) -> dict[str, Any]:
    """A job that does what jobs must not."""
    import colorsys  # noqa: F401, PLC0415

    return {"heard": _heard}
