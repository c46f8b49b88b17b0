"""Networks to which this state has attached pods: their plugins may be told what is in use, and that the rest is garbage.

Another runtime's pods may be in the same networks, with the same plugins, until this one takes over. Garbage collection in
its name would take their addresses away.

    <state>/cni/networks/<name>         an empty file; gone with a reboot, as the attachments are
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)


class KnownNetworks:
    """Their names."""

    def __init__(self, state: Path) -> None:
        self._directory = state / "networks"
        self._names: set[str] = set()

    def load(self, attached: Iterable[str]) -> None:
        """What earlier lives of the daemon have noted, and `attached`, which records speak of."""
        self._names.update(attached)
        with contextlib.suppress(OSError):
            self._names.update(os.listdir(self._directory))

    def note(self, name: str) -> None:
        """Pods of this state are in this network from now on."""
        if name in self._names:
            return
        self._names.add(name)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._directory / name).touch()
        except OSError as error:
            log.warning("a network's name cannot be noted", network=name, reason=error.strerror)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def remove(self) -> None:
        """Forget them all."""
        for name in self._names:
            (self._directory / name).unlink(missing_ok=True)
        self._names.clear()
        with contextlib.suppress(OSError):
            self._directory.rmdir()
