"""An image to try with: one small file."""

from __future__ import annotations

import stat

from imagesvc.erofs.image import Attributes, Directory, ImageWriter


def image(name: str, content: bytes) -> bytes:
    """An EROFS image with one file of less than a block."""
    writer = ImageWriter()
    root = Directory(None, b"")
    root.children[name.encode()] = writer.file(Attributes(stat.S_IFREG | 0o644, 0, 0, 0), len(content))
    writer.data(content)
    writer.finish(root)
    made = bytearray(writer.size)
    for address, buffers in writer.take():
        data = b"".join(buffers)
        made[address : address + len(data)] = data
    return bytes(made)
