"""Where the blobs of one image come from, and for whom: what a pull hands to its downloads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from imagesvc.references import Reference
from imagesvc.registry.access import Access


@dataclass(frozen=True)
class Source:
    """The endpoints of a reference in the order to try them: first the one that served the manifest."""

    reference: Reference
    accesses: Sequence[Access]
    slots: asyncio.Semaphore = field(compare=False)
    """Bounds how many of the image's blobs are downloaded at a time."""
    caller: str = ""
    """Fingerprint of who pulls. Downloads are shared, and resumed, by those who ask the same repository as the same caller:
    bytes of one tenant are no part of another's download, and nobody waits for another's registry."""
