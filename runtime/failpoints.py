"""Named places where the fault tests end the daemon: CRISP_FAILPOINT=NAME kills it there with SIGKILL.

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
        "sandbox.detached",
        "sandbox.released",
        "container.recorded",
        "container.shim",
        "container.made",
        "container.started",
        "container.stopping",
        "container.removing",
        "container.unlinked",
    )
)

_armed = os.environ.get("CRISP_FAILPOINT", "")
if _armed and _armed not in NAMES:
    raise SystemExit(f"CRISP_FAILPOINT={_armed}: no such failpoint; there are {', '.join(sorted(NAMES))}")


def failpoint(name: str) -> None:
    """End the process here if the tests asked for it."""
    assert name in NAMES, name
    if name == _armed:
        os.kill(os.getpid(), signal.SIGKILL)
