"""CRIU: whether it is here, and what it has to say about a failure. The OCI runtime only says that there was one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from proto.errors import failed_precondition

if TYPE_CHECKING:
    from pathlib import Path

LOG_BYTES: Final = 16 * 1024 * 1024
"""How much of a log is read."""
ERRORS: Final = 3
"""How many of its errors are told: the first is the cause, those that follow say what it was needed for."""


def require() -> None:
    """Raise FAILED_PRECONDITION on a node without CRIU."""
    if shutil.which("criu") is None:
        raise failed_precondition("this node has no CRIU, without which no container can be checkpointed or restored")


def reason(log: Path, unsaid: str) -> str:
    """The errors in CRIU's log (`dump.log`, `restore.log`); `unsaid` if CRIU never ran."""
    try:
        with open(log, "rb") as file:
            text = file.read(LOG_BYTES).decode(errors="replace")
    except OSError:
        return unsaid
    errors = (line.partition("Error ")[2].strip() for line in text.splitlines() if "Error " in line)
    return "; ".join(list(dict.fromkeys(errors))[:ERRORS])
