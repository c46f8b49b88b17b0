"""Images as volumes: each mounted read-only in the container's private namespace, and bound into the container from there.

<bundle>/images/N     the image's layers
<bundle>/volumes/N    the image, or the sub path of it that was asked for: the source of the container's bind mount
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

from kernel import mounts, syscalls
from proto.errors import Code, CrispError
from shim import rootfs


def mount_all(bundle: str, volumes: Sequence[dict[str, Any]]) -> None:
    """Mount `volumes`, {"lowerdirs": [topmost, ...], "sub_path": PATH, "userns": FILE}, in the present mount namespace.

    "userns" names a pinned user namespace whose mappings the images' files get; empty for none. An overlay cannot be mapped,
    so each layer is. A failure begins with `ImageVolumeMountFailed`, which the kubelet counts.
    """
    for index, volume in enumerate(volumes):
        try:
            _mount(bundle, index, volume)
        except OSError as error:
            name = volume["sub_path"] or "/"
            raise CrispError(Code.INVALID_ARGUMENT, f"ImageVolumeMountFailed: {name}: {error.strerror}") from None


def _mount(bundle: str, index: int, volume: dict[str, Any]) -> None:
    lowerdirs, sub_path = list(volume["lowerdirs"]), str(volume["sub_path"])
    if volume.get("userns"):
        lowerdirs = list(rootfs.mapped(os.path.join(bundle, "image-layers", str(index)), lowerdirs, volume["userns"]))
    image = os.path.join(bundle, "images", str(index))
    os.makedirs(image, exist_ok=True)
    if len(lowerdirs) == 1:
        mounts.bind(lowerdirs[0], image, readonly=True)
    else:
        mounts.overlay(image, lowerdirs)
    root = os.open(image, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Links in the image must not lead out of it.
        wanted = syscalls.openat2(root, sub_path.strip("/") or ".", os.O_PATH, syscalls.RESOLVE_IN_ROOT)
        try:
            _bind(wanted, os.path.join(bundle, "volumes", str(index)))
        finally:
            os.close(wanted)
    finally:
        os.close(root)


def _bind(source: int, place: str) -> None:
    """Bind what is open at `source` to `place`, which is made of the same kind."""
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if stat.S_ISDIR(os.fstat(source).st_mode):
        os.makedirs(place, exist_ok=True)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    mounts.bind(f"/proc/self/fd/{source}", place, readonly=True)
