"""Taking names out of the directories of an image that image.py has made, in place and without I/O.

A directory that loses names needs no more room than before: its blocks are packed again where they are. What the names led
to stays in the image, and nothing leads there.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from typing import NamedTuple

from imagesvc.erofs import format as ondisk
from imagesvc.erofs import xattrs
from imagesvc.erofs.format import BLOCK, SLOT

Read = Callable[[int, int], bytes]
"""Address and length of a part of the image: its bytes."""


class _Directory(NamedTuple):
    """Where a directory is, and what is in it: a name and where it leads, sorted."""

    address: int
    inode: bytes
    data: int
    inline: int
    """Address of its last piece where that stands behind the inode, else 0."""
    names: list[tuple[bytes, tuple[int, int]]]


def remove(read: Read, paths: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """What has to be written, and where, so that these are gone. Raises ValueError where there is no such thing.

    Each directory on the way is read once, however many of the paths lie below it.
    """
    doomed: dict[bytes, set[bytes]] = {}
    below: dict[bytes, set[bytes]] = {}
    for path in paths:
        parent, _, base = path.rpartition(b"/")
        _lead_to(parent, below)
        doomed.setdefault(parent, set()).add(base)
    written = []
    todo = [(b"", ondisk.ROOT_ADDRESS)] if doomed else []
    while todo:
        path, address = todo.pop()
        directory = _directory(read, address)
        bases = doomed.get(path, set())
        names = below.get(path, set())
        inner = [(_join(path, name), node[0] * SLOT) for name, node in directory.names if name in names]
        left = [item for item in directory.names if item[0] not in bases]
        if len(left) + len(bases) != len(directory.names) or len(inner) != len(names):
            raise ValueError("the image lacks what is to be removed from it")
        if bases:
            written += _repack(directory, left)
        todo += inner
    (inodes,) = ondisk.SUPERBLOCK_INODES.unpack(read(ondisk.SUPERBLOCK_INODES_AT, ondisk.SUPERBLOCK_INODES.size))
    return [*written, (ondisk.SUPERBLOCK_INODES_AT, ondisk.SUPERBLOCK_INODES.pack(inodes - sum(map(len, doomed.values()))))]


def _lead_to(directory: bytes, below: dict[bytes, set[bytes]]) -> None:
    """Notes, for each directory on the way to this one, which of those in it come next."""
    while directory:
        parent, _, base = directory.rpartition(b"/")
        known = below.setdefault(parent, set())
        if base in known:
            return
        known.add(base)
        directory = parent


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _directory(read: Read, address: int) -> _Directory:
    inode = read(address, ondisk.EXTENDED.size)
    layout, words, mode, _, size, block, *_rest = ondisk.EXTENDED.unpack(inode)
    if layout not in (ondisk.INLINE_EXTENDED, ondisk.PLAIN_EXTENDED) or not stat.S_ISDIR(mode):
        raise ValueError("the image has something else where a directory should be")
    data = block * BLOCK
    inline = address + len(inode) + xattrs.size(words) if layout == ondisk.INLINE_EXTENDED else 0
    tail = size % BLOCK if inline else 0
    content = read(data, size - tail) + (read(inline, tail) if tail else b"")
    names = []
    for start in range(0, size, BLOCK):
        names += ondisk.unpack_names(content[start : start + BLOCK])
    return _Directory(address, inode, data, inline, names)


def _repack(directory: _Directory, left: list[tuple[bytes, tuple[int, int]]]) -> list[tuple[int, bytes]]:
    names = [name for name, _node in left]
    nodes = [node for _name, node in left]
    blocks = []
    start = 0
    for end in ondisk.split_names(names):
        blocks.append(ondisk.pack_names(names[start:end], nodes[start:end]))
        start = end
    size = (len(blocks) - 1) * BLOCK + len(blocks[-1])
    layout, words, mode, reserved, old, *rest = ondisk.EXTENDED.unpack(directory.inode)
    written = []
    if directory.inline and size % BLOCK and size // BLOCK == old // BLOCK:
        written.append((directory.inline, blocks.pop()))
    else:
        layout = ondisk.PLAIN_EXTENDED
    written += [(directory.data + i * BLOCK, block.ljust(BLOCK, b"\0")) for i, block in enumerate(blocks)]
    return [(directory.address, ondisk.EXTENDED.pack(layout, words, mode, reserved, size, *rest)), *written]
