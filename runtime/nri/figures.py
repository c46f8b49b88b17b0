"""What is counted of plugins, for the metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

NAMES: Final = 128
"""Of plugins that are told apart; those after them count as `other`."""


class Figures:
    """Counters since the start of the daemon."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """By plugin, request and outcome: ok, refused, timeout, gone."""
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        """What the requests took, by plugin and request."""
        self.closed: Counter[str] = Counter()
        """Connections that ended, by reason: left, timeout, protocol, registration, synchronization, shutdown."""
        self._names: set[str] = set()

    def asked(self, plugin: str, request: str, outcome: str, seconds: float) -> None:
        """A request has ended."""
        if plugin not in self._names:
            if len(self._names) >= NAMES:
                plugin = "other"
            self._names.add(plugin)
        self.requests[plugin, request, outcome] += 1
        self.seconds[plugin, request] += seconds
