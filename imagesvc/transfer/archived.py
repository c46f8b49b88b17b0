"""What importing an archive hands to a pull: an image whose documents are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imagesvc.manifests import Manifest
from imagesvc.references import Reference


@dataclass(frozen=True)
class ArchivedImage:
    """One image of an archive, for this platform. `blobs` says where the layers lie, by digest."""

    names: tuple[Reference, ...]
    top: str
    digest: str
    manifest: Manifest
    config: bytes
    documents: Mapping[str, bytes]
    from_registry: bool
    """Whether the manifest is one that a registry may have: docker-archives have none."""
