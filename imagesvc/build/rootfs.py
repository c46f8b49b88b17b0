"""`add-rootfs`: an image record of a plain directory. Nothing is copied: the directory is the read-only lower directory."""

from __future__ import annotations

import json
import os

from imagesvc.platforms import Platform
from imagesvc.references import Reference
from imagesvc.store.content import digest_of
from imagesvc.store.images import ROOTFS, Image, OciConfig
from proto.errors import invalid


def rootfs_image(
    reference: Reference, directory: str, config: OciConfig, platform: Platform, size: int
) -> tuple[Image, bytes]:
    """The record for a directory, and the configuration document whose digest is the image's id.

    The id derives from name, path and configuration, so that adding the same again changes nothing. `size` is what the
    directory takes of the disk, in bytes.
    """
    if reference.digest:
        raise invalid(f"{reference} names a digest; a root file system is added under a tag")
    if not os.path.isabs(directory) or not os.path.isdir(directory):
        raise invalid(f"{directory!r} is not an absolute path of a directory")
    real = os.path.realpath(directory)
    document = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": config.to_json(),
        "rootfs": {"type": "layers", "diff_ids": []},
        "crisp.directory": real,
        "crisp.reference": str(reference),
    }
    raw = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    image = Image(
        id=digest_of(raw),
        kind=ROOTFS,
        repo_tags=(str(reference),),
        repo_digests=(),
        size=size + len(raw),
        config=config,
        pinned=False,
        layers=(),
        directory=real,
        architecture=platform.architecture,
        os=platform.os,
    )
    return image, raw
