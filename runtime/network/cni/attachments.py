"""What is remembered of a pod's attachments: enough to undo them without the configuration that made them.

A record is stored before the first plugin is run for a pod and deleted after the last one has undone its part. So
whatever a plugin may have done belongs to a record, also if the daemon died, and even if the files in the configuration
directory are others by then.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final, Self

from runtime.network.cni.network_list import NetworkList

KIND: Final = "cni"


@dataclass(slots=True)
class Attachment:
    """A pod's interface in one network."""

    interface: str
    network: NetworkList
    capabilities: dict[str, Any]
    """As the plugins were told at ADD: at DEL they are told the same."""
    result: dict[str, Any] | None = None
    """Of ADD; None: it did not come to an end."""


@dataclass(slots=True)
class Record:
    """All attachments of one sandbox."""

    netns: str
    arguments: str
    attachments: list[Attachment] = field(default_factory=list)
    condemned: bool = False
    """To be undone, whether anybody asks for it again or not."""
    inherited: bool = False
    """From an earlier life of the daemon. Not stored."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while plugins work on this sandbox. Not stored."""

    @property
    def complete(self) -> bool:
        """Whether every ADD came to an end."""
        return all(attachment.result is not None for attachment in self.attachments)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kind": KIND,
            "netns": self.netns,
            "arguments": self.arguments,
            "condemned": self.condemned,
            "attachments": [
                {
                    "interface": attachment.interface,
                    "network": attachment.network.document(),
                    "capabilities": attachment.capabilities,
                    "result": attachment.result,
                }
                for attachment in self.attachments
            ],
        }

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Self:
        """From JSON."""
        attachments = [
            Attachment(entry["interface"], NetworkList.restore(entry["network"]), entry["capabilities"], entry["result"])
            for entry in document["attachments"]
        ]
        return cls(document["netns"], document["arguments"], attachments, document["condemned"], inherited=True)
