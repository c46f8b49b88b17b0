"""What a container's writable layer holds for its mounts alone: no change of its image, and part of no image made of it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import Final

POD_FILES: Final = ("etc/hosts", "etc/hostname", "etc/resolv.conf", "dev", "proc", "sys")
"""Mount points that every container has, made by the OCI runtime where an image lacks them."""


def mount_points(container_paths: Iterable[str]) -> tuple[str, ...]:
    """Below the container's root, of a container that has mounts at these places besides."""
    return (*POD_FILES, *(posixpath.normpath(f"/{path}").strip("/") for path in container_paths))
