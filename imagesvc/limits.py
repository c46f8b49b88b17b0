"""Every bound of the image service, with its unit, in one place.

A registry, a manifest and a layer are all written by strangers. What they can make this host spend is bounded here;
`ImageConfig.limits` carries one `Limits` so that a node may set its own.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

MAX_LAYERS = 500
"""Layers of one image: overlayfs takes no more lower directories (OVL_MAX_STACK)."""

MAX_MANIFEST_BYTES = 4 * MIB
"""Bytes of a manifest or an index: what registries accept at most (distribution's `manifest payload size`)."""

MAX_CONFIG_BYTES = 8 * MIB
"""Bytes of an image configuration."""

MAX_INDEX_ENTRIES = 4096
"""Manifests listed in one index."""

MAX_TOKEN_REPLY_BYTES = 1 * MIB
"""Bytes of a token server's answer."""

MAX_ERROR_BODY_BYTES = 64 * KIB
"""Bytes that are read of an error reply, to quote from."""

MAX_TAR_METADATA_BYTES = 4 * MIB
"""Bytes of one PAX header, GNU long name or sparse map."""

MAX_NAME_BYTES = 4096
"""Bytes of a path inside a layer (PATH_MAX)."""

MAX_TREE_BYTES = 512 * MIB
"""Bytes of the names, link targets and directories' attributes of one layer: they are in memory while it is unpacked."""

MAX_SPARSE_SEGMENTS = 65536
"""Data segments of one sparse file."""

MAX_CHECKPOINT_FILES = 65536
"""Files of one checkpoint: CRIU writes about ten for each process."""

MAX_UID = (1 << 63) - 1
"""The highest user that CRI's Image.uid can say (int64)."""

MAX_SYMLINKS = 40
"""Symbolic links followed while one path is resolved (the kernel's MAXSYMLINKS)."""


@dataclass(frozen=True)
class Limits:
    """What one layer may make this host write. Sizes in bytes."""

    layer_bytes: int = 128 * GIB
    """Inflated bytes of one layer."""
    layer_entries: int = 4_000_000
    """Tar entries of one layer."""
    inflate_ratio: int = 1100
    """Inflated bytes per compressed byte: DEFLATE cannot pass 1032:1, zstd can, and only a bomb does."""
    inflate_ratio_floor: int = 256 * MIB
    """Inflated bytes below which the ratio is not looked at: a layer of zeros is legal."""
    blob_bytes: int = 128 * GIB
    """Bytes of one blob as a manifest announces it."""
