"""What is changed in CRIU's images, for a container that joins the namespaces of a pod. CRIU would fill them as if its own.

    utsns-<n>.img              one UtsnsEntry { nodename = 1; domainname = 2; }: gets the new pod's name
    ipcns-{shm,msg,sem}-<n>.img   SysV objects: emptied where the pod has got them already

An image is u32 magic, u32 magic of its kind, then entries: u32 length and a protobuf message; numbers are little endian.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from proto.errors import invalid

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES: Final = 4096
"""Both names have at most 64 bytes."""


HEAD_BYTES: Final = 8
"""The two magic numbers."""


def empty_ipc(images: Path) -> None:
    """Leave no SysV object in the images. Blocks."""
    for kind in ("shm", "msg", "sem"):
        for path in images.glob(f"ipcns-{kind}-*.img"):
            os.truncate(path, min(path.stat().st_size, HEAD_BYTES))


def set_hostname(images: Path, hostname: str) -> None:
    """Give the pod's own host name to what is restored. Blocks. INVALID_ARGUMENT if an image is not in CRIU's form."""
    for path in images.glob("utsns-*.img"):
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        try:
            path.write_bytes(renamed(data, hostname.encode()))
        except (ValueError, IndexError, struct.error):
            raise invalid(f"the checkpoint's {path.name} is not in CRIU's form") from None


def renamed(data: bytes, name: bytes) -> bytes:
    """The image with another host name. Raises ValueError, IndexError or struct.error if `data` is no such image."""
    (length,) = struct.unpack_from("<I", data, HEAD_BYTES)
    begin = HEAD_BYTES + 4
    if len(data) != begin + length or len(data) > MAX_BYTES:
        raise ValueError(length)
    entry = data[begin:]
    kept = b""
    position = 0
    while position < len(entry):
        tag, size = entry[position], entry[position + 1]
        if tag not in (0x0A, 0x12) or size > 0x7F:  # fields 1 and 2, both of bytes, shorter than what needs a second byte
            raise ValueError(tag)
        if tag != 0x0A:
            kept += entry[position : position + 2 + size]
        position += 2 + size
    if position != len(entry) or len(name) > 0x7F:
        raise ValueError(position)
    entry = bytes((0x0A, len(name))) + name + kept
    return data[:HEAD_BYTES] + struct.pack("<I", len(entry)) + entry
