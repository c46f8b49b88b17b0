"""EROFS on disk, as far as crisp writes it: the kernel's fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst.

All numbers are little endian. A block has 4096 bytes. An inode is found by its nid: with `meta_blkaddr` 0 that is its
address in the image divided by 32, so inodes may lie anywhere among the data. Nothing here needs a kernel newer than Linux
5.4; mounting the file itself, without a loop device, needs 6.12.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence

BLOCK = 4096
SLOT = 32
"""Bytes; an inode begins at a multiple of it."""
SUPER_OFFSET = 1024
MAGIC = 0xE0F5E1E2
MTIME = 0x2
"""Feature: the times of inodes are those of modification."""
NAME_MAX = 255
MAX_BLOCKS = (1 << 32) - 1
"""Of an image: block addresses have 32 bits."""

SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
"""magic checksum feature_compat blkszbits extslots root_nid inos build_time build_time_nsec blocks meta_blkaddr
xattr_blkaddr uuid volume_name feature_incompat compression_algorithms extra_devices devt_slotoff dirblkbits
xattr_prefix_count xattr_prefix_start packed_nid xattr_filter_reserved"""
SUPERBLOCK_INODES = struct.Struct("<Q")
SUPERBLOCK_INODES_AT = SUPER_OFFSET + 16
ROOT_ADDRESS = SUPER_OFFSET + SUPERBLOCK.size
"""The root's inode stands right behind the superblock, since its nid has but 16 bits there."""

COMPACT = struct.Struct("<HHHHIIIIHHI")
"""format xattr_icount mode nlink size reserved u ino uid gid reserved; its time is the superblock's build_time."""
COMPACT_NLINK = struct.Struct("<H")
COMPACT_NLINK_AT = 6
EXTENDED = struct.Struct("<HHHHQIIIIqII16x")
"""format xattr_icount mode reserved size u ino uid gid mtime mtime_nsec nlink"""
EXTENDED_NLINK = struct.Struct("<I")
EXTENDED_NLINK_AT = 44

PLAIN, INLINE = 0, 2
"""Layouts of a file's data: `u` blocks on; or the last piece, of less than a block, right behind inode and attributes."""
_EXTENDED_BIT = 1
PLAIN_COMPACT, INLINE_COMPACT = PLAIN << 1, INLINE << 1
PLAIN_EXTENDED, INLINE_EXTENDED = PLAIN_COMPACT | _EXTENDED_BIT, INLINE_COMPACT | _EXTENDED_BIT

DIRENT = struct.Struct("<QHBx")
"""nid nameoff file_type"""
REG, DIR, CHR, BLK, FIFO, SOCK, LNK = range(1, 8)
"""File types of directory entries."""
MODES = {
    REG: stat.S_IFREG,
    DIR: stat.S_IFDIR,
    CHR: stat.S_IFCHR,
    BLK: stat.S_IFBLK,
    FIFO: stat.S_IFIFO,
    SOCK: stat.S_IFSOCK,
    LNK: stat.S_IFLNK,
}


def device_number(major: int, minor: int) -> int:
    """As an inode keeps it (new_encode_dev)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def split_names(names: Sequence[bytes]) -> list[int]:
    """How a directory's sorted names, `.` and `..` among them, fall into blocks: the index after the last one of each.

    The entries of a block come first, then the names. All blocks but the last are as full as may be.
    """
    entry = DIRENT.size
    if entry * len(names) + sum(map(len, names)) <= BLOCK:
        return [len(names)]
    ends = []
    room = BLOCK
    for index, name in enumerate(names):
        needed = entry + len(name)
        if needed > room:
            ends.append(index)
            room = BLOCK
        room -= needed
    return [*ends, len(names)]


def pack_names(names: Sequence[bytes], nodes: Sequence[tuple[int, int]]) -> bytes:
    """One block of a directory, without what fills it up: names, and for each the nid and the file type."""
    offset = DIRENT.size * len(names)
    parts = []
    pack = DIRENT.pack
    for name, (nid, kind) in zip(names, nodes, strict=True):
        parts.append(pack(nid, offset, kind))
        offset += len(name)
    return b"".join(parts) + b"".join(names)


def unpack_names(block: bytes) -> list[tuple[bytes, tuple[int, int]]]:
    """The names in one block of a directory, with nid and file type."""
    count = DIRENT.unpack_from(block)[1] // DIRENT.size
    entries = [DIRENT.unpack_from(block, i * DIRENT.size) for i in range(count)]
    ends = [offset for _nid, offset, _kind in entries[1:]]
    ends.append(len(block))
    names = [block[offset:end].rstrip(b"\0") for (_nid, offset, _kind), end in zip(entries, ends, strict=True)]
    return [(name, (nid, kind)) for name, (nid, _offset, kind) in zip(names, entries, strict=True)]
