"""The [images] section of the configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from imagesvc.limits import Limits
from imagesvc.platforms import Platform, host_platform, parse_platform
from imagesvc.registry.endpoint import EndpointSources
from proto.errors import invalid

AUTO, EROFS, DIRECTORIES = LAYERS = ("auto", "erofs", "directories")


@dataclass(frozen=True)
class ImageConfig:
    """How images are pulled and kept."""

    registries: EndpointSources = field(default_factory=EndpointSources)
    auth_files: tuple[str, ...] = ("/etc/crisp/auth.json", "/var/lib/kubelet/config.json", "/root/.docker/config.json")
    """Credentials for pulls that bring none; the first file that has the registry."""
    parallel_downloads: int = 3
    """Layers of one image that are downloaded at a time. Per image, so that a registry that hangs holds up its own alone."""
    parallel_unpacks: int = 0
    """Layers of one image that are unpacked at a time; 0: one for each processor, between 2 and 8."""
    keep_blobs: bool = False
    """Keep compressed layers beside the unpacked ones. Export and push do without them, but have to compress again."""
    pull_progress_timeout: float = 300.0
    """Seconds without a byte from any registry after which a pull is given up."""
    keep_partial: float = 86400.0
    """Seconds for which an interrupted download is kept to be resumed."""
    pinned: tuple[str, ...] = ()
    """Names or glob patterns (`docker.io/library/*`) of images that the kubelet's garbage collection must leave alone."""
    layers: str = AUTO
    """What new layers are unpacked into: `erofs`, one file for each layer; `directories`; `auto`: files where the kernel and
    the file system can do it, which is tried at each start. Layers that are there stay what they are, and are used."""
    platform: str = ""
    """os/architecture[/variant] to pull instead of the host's."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.platform:
            parse_platform(self.platform)
        if self.layers not in LAYERS:
            raise invalid(f"layers: {self.layers!r} is none of {', '.join(LAYERS)}")
        if self.parallel_downloads < 1:
            raise invalid("parallel_downloads must be at least 1")
        if self.parallel_unpacks < 0:
            raise invalid("parallel_unpacks must not be negative")
        if self.pull_progress_timeout <= 0:
            raise invalid("pull_progress_timeout must be more than 0 seconds")

    def unpacks_at_once(self) -> int:
        """Layers of one image that are unpacked at a time."""
        return self.parallel_unpacks or max(2, min(os.cpu_count() or 1, 8))

    def wanted_platform(self) -> Platform:
        """The platform to choose of an index."""
        return parse_platform(self.platform) if self.platform else host_platform()
