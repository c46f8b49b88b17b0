"""How far a pull has come: kept by the pull, read by whoever shows it (the command's bars, ImageStatus, metrics)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class LayerProgress:
    """One layer. Sizes in compressed bytes."""

    digest: str
    size: int
    downloaded: int = 0
    unpacked: int = 0
    state: str = "waiting"
    """waiting, downloading, unpacking (all of it is here), exists or done."""

    @property
    def current(self) -> int:
        """Compressed bytes that the present state is through with."""
        return self.unpacked if self.state == "unpacking" else self.downloaded


@dataclass
class PullProgress:
    """One pull, as far as it has come."""

    reference: str
    started: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    state: str = "resolving"
    """resolving, fetching, syncing or done."""
    layers: list[LayerProgress] = field(default_factory=list)
    watchers: list[Callable[[PullProgress], None]] = field(default_factory=list, repr=False)

    def describe(self) -> dict[str, object]:
        """As JSON, for verbose status."""
        layers = [{"digest": layer.digest, "state": layer.state, "bytes": layer.current} for layer in self.layers]
        return {
            "reference": self.reference,
            "state": self.state,
            "bytes": self.size,
            "done": self.downloaded,
            "layers": layers,
        }

    @property
    def downloaded(self) -> int:
        """Compressed bytes that are here."""
        return sum(layer.downloaded for layer in self.layers)

    @property
    def size(self) -> int:
        """Compressed bytes of all layers that have to come."""
        return sum(layer.size for layer in self.layers)

    def changed(self) -> None:
        """Tells those who watch. A watcher must not block; one that fails is dropped."""
        for watcher in list(self.watchers):
            try:
                watcher(self)
            except Exception:
                self.watchers.remove(watcher)
