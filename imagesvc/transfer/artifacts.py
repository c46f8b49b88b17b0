"""OCI artifacts as image volumes: each blob of the manifest is one file, named by its title annotation.

The directory is a layer of its own, `artifact-<manifest digest>`, so that everything about layers holds for it: one sync,
sharing, removal when nobody uses it. Files are hard links of the downloads: no byte is copied.
"""

from __future__ import annotations

import asyncio
import os

from imagesvc.disk_errors import disk_error
from imagesvc.manifests import Descriptor, Manifest
from imagesvc.media_types import OCI_EMPTY
from imagesvc.store.layers import Layer, LayerStore
from imagesvc.transfer.downloads import Downloads
from imagesvc.transfer.progress import LayerProgress, PullProgress
from imagesvc.transfer.sources import Source
from proto.errors import invalid

_TITLE = "org.opencontainers.image.title"
_PAGE = 4096


async def unpack_artifact(
    digest: str, manifest: Manifest, source: Source, downloads: Downloads, layers: LayerStore, progress: PullProgress
) -> Layer:
    """Fetches an artifact's blobs into a staged layer, which the caller wants (LayerStore.want)."""
    key = artifact_key(digest)
    layer = layers.by_key(key)
    if layer is None:
        directory = layers.new_directory()
        try:
            size, inodes = await _fill(directory, manifest, source, downloads, progress)
            layer = layers.stage_artifact(directory, key, digest, size, inodes)
        except BaseException:
            layers.remove_directories([directory])
            raise
    return layer


def artifact_key(digest: str) -> str:
    """The layer key of an artifact."""
    return "artifact-" + digest.partition(":")[2]


async def _fill(
    directory: str, manifest: Manifest, source: Source, downloads: Downloads, progress: PullProgress
) -> tuple[int, int]:
    """Fetches every blob; returns bytes of disk and inodes."""
    root = os.path.join(directory, "fs")
    os.mkdir(root, 0o755)
    blobs = [blob for blob in manifest.layers if blob.media_type != OCI_EMPTY]
    progress.layers = [LayerProgress(blob.digest, blob.size) for blob in blobs]
    names = [file_name(blob.annotations.get(_TITLE, ""), blob.digest) for blob in blobs]
    try:
        async with asyncio.TaskGroup() as group:
            for blob, name, shown in zip(blobs, names, progress.layers, strict=True):
                group.create_task(_file(os.path.join(root, name), name, blob, source, downloads, progress, shown))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return _PAGE + sum((blob.size + _PAGE - 1) & -_PAGE for blob in blobs), 1 + len(blobs)


async def _file(
    target: str,
    name: str,
    blob: Descriptor,
    source: Source,
    downloads: Downloads,
    progress: PullProgress,
    shown: LayerProgress,
) -> None:
    """Fetches one blob and links it to where its file is to be."""
    async with downloads.hold(blob, source) as download:
        await asyncio.shield(download.done)
        try:
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            os.link(download.path, target)
            os.chmod(target, 0o444)
        except (FileExistsError, NotADirectoryError):
            raise invalid(f"artifact {source.reference} has two files of the name /{name}") from None
        except OSError as error:
            raise disk_error(error, os.path.dirname(target), f"storing a file of {source.reference}") from error
    shown.downloaded = shown.unpacked = blob.size
    shown.state = "done"
    progress.changed()


def file_name(title: str, digest: str) -> str:
    """A path below the volume: the title, or the digest where there is none. INVALID_ARGUMENT if it would lead out."""
    if not title:
        return digest.replace(":", "-")
    parts = title.split("/")
    if title.startswith("/") or "\0" in title or any(part in ("", ".", "..") for part in parts):
        raise invalid(f"the artifact's file name {title[:200]!r} is not a plain relative path")
    return title
