"""Where the blobs of one image come from, and for whom: what a pull hands to its downloads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from imagesvc.references import Reference
from imagesvc.registry.credentials import Credentials
from imagesvc.registry.endpoint import Endpoint


@dataclass(frozen=True)
class Source:
    """The endpoints of a reference in the order to try them: first the one that served the manifest."""

    reference: Reference
    credentials: Credentials
    endpoints: Sequence[Endpoint]
    slots: asyncio.Semaphore = field(compare=False)
    """Bounds how many of the image's blobs are downloaded at a time."""
