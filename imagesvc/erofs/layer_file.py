"""The file that a layer is: an EROFS image, and behind it what the image service keeps of the layer.

    image       whole blocks; what is mounted
    skeleton    the tar without its files' contents (skeleton.py); none if it is not kept
    map         where the image has metadata: u64 address, u64 length, each
    whiteouts   paths of those of which it is not known whether they hide anything, NUL between them (unpack.py)
    document    JSON, the store's
    footer      128 bytes: what is how long, the digest of the metadata, and a checksum of itself and the three before it

Mounting looks at the image alone, whose superblock says how many blocks it has. The digest is the SHA-256 of the bytes that
the map names, in its order; contents of files are what the layer's own digest is about.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from imagesvc.limits import MIB
from kernel.descriptors import write_all

SUFFIX = ".erofs"
_FOOTER = struct.Struct("<8sIQQQQQ32s40xI")
"""magic version image_bytes skeleton_bytes map_bytes whiteouts_bytes document_bytes digest checksum"""
_CHECKSUM = struct.Struct("<I")
_MAGIC = b"crisplyr"
_VERSION = 1
_EXTENT = struct.Struct("<QQ")
MAX_WHITEOUTS = 16 * MIB
"""Bytes of their paths."""
_MAX_END = 2 * MAX_WHITEOUTS
"""Bytes of map, whiteouts and document, all of which the daemon has in memory when it takes a layer in."""
_READ = 1 * MIB


class LayerFileError(ValueError):
    """This is no layer file, or it is damaged."""


class Trailer(NamedTuple):
    """What stands behind the image. `metadata`: address and length of each piece of the image that `digest` covers."""

    image_bytes: int
    skeleton_bytes: int
    metadata: Sequence[tuple[int, int]]
    whiteouts: bytes
    document: bytes
    digest: bytes

    @property
    def skeleton_offset(self) -> int:
        """Where the skeleton begins."""
        return self.image_bytes


def read(path: str) -> Trailer:
    """Reads what stands behind the image. Raises OSError, or LayerFileError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return read_from(descriptor)
    finally:
        os.close(descriptor)


def read_from(descriptor: int) -> Trailer:
    """The same from an open file."""
    size = os.fstat(descriptor).st_size
    footer = os.pread(descriptor, _FOOTER.size, max(0, size - _FOOTER.size))
    if len(footer) != _FOOTER.size:
        raise LayerFileError("it is too short for a layer")
    magic, version, image, skeleton, *sizes, digest, checksum = _FOOTER.unpack(footer)
    if magic != _MAGIC or version != _VERSION:
        raise LayerFileError("it does not end as a layer does: it was cut off, or is none of this version")
    if image + skeleton + sum(sizes) + _FOOTER.size != size or sum(sizes) > _MAX_END:
        raise LayerFileError("its parts are not as long as it is")
    body = os.pread(descriptor, sum(sizes), image + skeleton)
    if zlib.crc32(footer[: -_CHECKSUM.size], zlib.crc32(body)) != checksum:
        raise LayerFileError("its end is damaged")
    map_bytes, whiteouts_bytes, _document_bytes = sizes
    metadata = list(_EXTENT.iter_unpack(body[:map_bytes]))
    document = map_bytes + whiteouts_bytes
    return Trailer(image, skeleton, metadata, body[map_bytes:document], body[document:], digest)


def write(descriptor: int, trailer: Trailer) -> None:
    """Puts the end behind image and skeleton, instead of whatever stands there. Raises OSError."""
    extents = b"".join(_EXTENT.pack(*extent) for extent in trailer.metadata)
    parts = (extents, trailer.whiteouts, trailer.document)
    body = b"".join(parts)
    sizes = (trailer.image_bytes, trailer.skeleton_bytes, *map(len, parts))
    footer = _FOOTER.pack(_MAGIC, _VERSION, *sizes, trailer.digest, 0)[: -_CHECKSUM.size]
    footer += _CHECKSUM.pack(zlib.crc32(footer, zlib.crc32(body)))
    end = trailer.image_bytes + trailer.skeleton_bytes
    os.lseek(descriptor, end, os.SEEK_SET)
    write_all(descriptor, body + footer)
    os.ftruncate(descriptor, end + len(body) + len(footer))


def seal(path: str, document: bytes, *, keep_skeleton: bool) -> None:
    """Gives a layer its document; without `keep_skeleton` the skeleton goes. Raises OSError, LayerFileError."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        trailer = read_from(descriptor)
        kept = trailer.skeleton_bytes if keep_skeleton else 0
        write(descriptor, trailer._replace(document=document, skeleton_bytes=kept))
    finally:
        os.close(descriptor)


def digest_of(descriptor: int, metadata: Sequence[tuple[int, int]]) -> bytes:
    """The digest of the pieces of the image that have metadata, as they are in the file. Raises OSError."""
    digest = hashlib.sha256()
    for address, length in metadata:
        position, end = address, address + length
        while position < end and (piece := os.pread(descriptor, min(_READ, end - position), position)):
            digest.update(piece)
            position += len(piece)
    return digest.digest()
