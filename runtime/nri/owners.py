"""Which plugin has set what of which container, and so whether two of them contradict each other.

A part belongs to the first plugin that sets it. Whoever removes what another has set takes its place, and may set it anew;
nobody else may then. The owner of what is removed is written with the mark of removal, as NRI writes it to validators.
"""

from __future__ import annotations

from typing import Any, Final

from proto import nri_pb2 as nri
from runtime.nri.errors import Conflict

REMOVAL: Final = "-"
"""Before a key: what has this key is removed."""


def removed(key: str) -> str | None:
    """The key that is marked for removal; None for one that is not."""
    return key[len(REMOVAL) :] if key.startswith(REMOVAL) else None


class Owners:
    """Claims on the parts of containers; `message` is what validators are told."""

    def __init__(self) -> None:
        self.message = nri.OwningPlugins()

    def claim(self, container: str, field: nri.Field, plugin: str, key: str | None = None) -> None:
        """The plugin sets a part, of a compound field the entry with this key. Raises `Conflict`."""
        owners = self._of(container, field, key)
        part = field if key is None else key
        if (other := owners.get(part)) is not None:
            remover = removed(other)
            if remover != plugin:
                name = nri.Field.Name(field) + (f" {key}" if key is not None else "")
                other = other if remover is None else remover
                told = (
                    f"plugin {plugin} sets {name} twice"
                    if other == plugin
                    else f"plugins {other} and {plugin} both set {name}"
                )
                raise Conflict(f"NRI: {told} of container {container}")
        owners[part] = plugin

    def clear(self, container: str, field: nri.Field, plugin: str, key: str | None = None) -> None:
        """The plugin removes what another has set."""
        self._of(container, field, key)[field if key is None else key] = REMOVAL + plugin

    def join(self, container: str, field: nri.Field, plugin: str) -> None:
        """The plugin adds to a part that many may add to."""
        owners = self.message.owners[container].simple
        others = owners.get(field)
        owners[field] = f"{others},{plugin}" if others else plugin

    def _of(self, container: str, field: nri.Field, key: str | None) -> Any:
        fields = self.message.owners[container]
        return fields.simple if key is None else fields.compound[field].owners
