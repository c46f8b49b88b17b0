"""Named places where the fault tests break things.

CRISP_FAILPOINT=NAME ends the process there with SIGKILL, the first time; CRISP_FAILPOINT=NAME:stop stops it, so that a test
can end another process at this very moment and let this one go on.

Every multi-step operation calls `failpoint` between its steps; NAMES lists them all, so that the tests can visit each one
and a misspelt name is an error.
"""

from __future__ import annotations

import os
import signal
from typing import Final

NAMES: Final = frozenset(
    (
        "sandbox.recorded",
        "sandbox.namespaces",
        "sandbox.network",
        "sandbox.told",
        "sandbox.ended",
        "sandbox.detached",
        "sandbox.released",
        "container.recorded",
        "container.told",
        "container.shim",
        "container.made",
        "container.started",
        "container.updated",
        "container.stopping",
        "container.removing",
        "container.unlinked",
        "network.unlinked",
        "exec.started",
        "image.opened",
        "image.unpacked",
        "image.published",
        "image.recorded",
        "image.removed",
    )
)

_ACTIONS: Final = {"": signal.SIGKILL, "stop": signal.SIGSTOP}


def _parse(wanted: str) -> tuple[str, signal.Signals]:
    name, _, action = wanted.partition(":")
    if wanted and (name not in NAMES or action not in _ACTIONS):
        raise SystemExit(f"CRISP_FAILPOINT={wanted}: no such failpoint; there are {', '.join(sorted(NAMES))}")
    return name, _ACTIONS[action]


_armed, _signal = _parse(os.environ.get("CRISP_FAILPOINT", ""))


def failpoint(name: str) -> None:
    """End or stop the process here if the tests asked for it."""
    global _armed  # noqa: PLW0603  once is enough: the process goes on after a stop
    assert name in NAMES, name
    if name == _armed:
        _armed = ""
        os.kill(os.getpid(), _signal)
