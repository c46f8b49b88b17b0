"""ImageFsInfo: what images take of the disk, from what was counted when they came. No layer is walked."""

from __future__ import annotations

from dataclasses import dataclass

from imagesvc.store.content import ContentStore
from imagesvc.store.layers import LayerStore


@dataclass(frozen=True)
class FsInfo:
    """Disk taken by images. `mountpoint` is a directory on the file system that they are on, as the kubelet wants it."""

    mountpoint: str
    used_bytes: int
    inodes_used: int


def image_usage(root: str, store: ContentStore, layers: LayerStore, partial_bytes: int, partial_files: int) -> FsInfo:
    """Layers count once, however many images have them; `partial_*` is what ingest/ has."""
    infos = [layer.info for layer in layers.all()]
    return FsInfo(
        mountpoint=root,
        used_bytes=sum(info.bytes for info in infos) + store.total_bytes + partial_bytes,
        inodes_used=sum(info.inodes for info in infos) + store.count + partial_files,
    )
