"""Volumes that are images (`Mount.image`): which image is meant, and what holds its layers.

Errors begin with `ImageVolumeMountFailed`, with nothing before it: the kubelet finds them by that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proto.errors import Code, CrispError
from runtime.oci.mounts import Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from imagesvc.service import ImageService
    from imagesvc.store.images import Image
    from proto import api_pb2 as cri
    from runtime.records import ContainerRecord


def requested(config: cri.ContainerConfig) -> list[cri.Mount]:
    """The mounts that are images, in their order: the index is their name below the bundle."""
    return [mount for mount in config.mounts if mount.image.image]


def resolve(images: ImageService, config: cri.ContainerConfig) -> list[Image]:
    """The images of all image volumes."""
    found = []
    for mount in requested(config):
        image = images.resolve(mount.image.image)
        if image is None:
            raise CrispError(
                Code.NOT_FOUND,
                f"ImageVolumeMountFailed: image {mount.image.image} of volume {mount.container_path} is not on this node",
            )
        if not mount.readonly:
            raise CrispError(
                Code.INVALID_ARGUMENT,
                f"ImageVolumeMountFailed: volume {mount.container_path} is an image and must be mounted readonly",
            )
        if mount.host_path:
            raise CrispError(
                Code.INVALID_ARGUMENT,
                f"ImageVolumeMountFailed: volume {mount.container_path} has both an image and a host path",
            )
        found.append(image)
    return found


def holders(record: ContainerRecord) -> Iterator[tuple[str, str]]:
    """Names under which the record's images are held, and the images' ids."""
    yield record.id, record.image_id
    for index, image_id in enumerate(record.volume_images):
        yield f"{record.id}/volume-{index}", image_id


def shim_arguments(images: ImageService, record: ContainerRecord, userns: str) -> list[dict[str, Any]]:
    """As the shim's `create` expects them; `userns` is the file of the pod's user namespace, or empty."""
    arguments = []
    for mount, image_id in zip(requested(record.config), record.volume_images, strict=True):
        image = images.image_of(image_id)
        if image is None:
            raise CrispError(Code.ABORTED, f"ImageVolumeMountFailed: image {image_id} was removed meanwhile")
        lower = images.lower_dirs(image)
        arguments.append({"lowerdirs": lower, "sub_path": mount.image_sub_path, "userns": userns})
    return arguments


def source(bundle: Path, index: int) -> Source:
    """Where the shim puts a volume, as the source of a bind mount."""
    return Source(str(bundle / "volumes" / str(index)), directory=True, propagation="private")
