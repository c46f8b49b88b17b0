"""Writing an EROFS image in one pass, without I/O: files as they come, then the directories.

    block 0      superblock at 1024, the root's inode behind it
    then, in the order in which there was need for room:
      whole blocks of files' contents, as they are
      chunks of metadata: inodes, each with its attributes and the last piece of its data, if that is short
    last         the directories: inodes in the last chunks, and blocks of names

A file's inode says where its data will be before the first byte of it has come, so nothing is held back but the end of the
last chunk. `take` hands out what can be written: (address, buffers); the buffers have to be written before the next call.
What no piece covers is a hole, which reads as zeros.

What is behind an inode must not pass a block's end: then it begins in the next block, or the last piece of data takes a
block like the others, whichever leaves less room unused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from imagesvc.erofs import format as ondisk
from imagesvc.erofs import xattrs
from imagesvc.erofs.format import BLOCK, SLOT

_CHUNK = 256 * 1024
_INLINE_MAX = 512
"""Bytes of a file's last piece that go behind its inode. With longer ones there, few inodes would share a block, and whoever
looks at all files of an image, as programs do when they start, would read a block for nearly each of them."""
_FILLER = bytes(2 * BLOCK)
_SECOND = 1_000_000_000
_COMPACT_SIZE, _EXTENDED_SIZE = ondisk.COMPACT.size, ondisk.EXTENDED.size
_COMPACT_ID_MAX = _COMPACT_LINKS_MAX = 0xFFFF
_COMPACT_SIZE_MAX = 0xFFFFFFFF
_pack_compact, _pack_extended = ondisk.COMPACT.pack, ondisk.EXTENDED.pack
_VOLUME = b"crisp layer"

Piece = tuple[int, list[bytes | bytearray | memoryview]]

_KIND = 0x7
_COMPACT = 0x8
_NID_SHIFT = 4


class ImageError(ValueError):
    """What the format has no room for."""


class Attributes(NamedTuple):
    """Of an inode. The time in nanoseconds since the epoch; `encoded` as xattrs.encode gives it."""

    mode: int
    uid: int
    gid: int
    mtime: int
    encoded: bytes = b""


class Directory:
    """A directory of an image. `children` maps names to nodes, which are what the writer's methods have returned, and to
    directories."""

    __slots__ = (
        *("parent", "name", "children", "mode", "uid", "gid", "mtime", "xattrs", "opaque"),
        *("address", "_names", "_ends", "_data", "_inline"),
    )

    def __init__(self, parent: Directory | None, name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.children: dict[bytes, int | Directory] = {}
        self.mode = 0o755
        self.uid = 0
        self.gid = 0
        self.mtime = 0
        self.xattrs: Mapping[bytes, bytes] = {}
        self.opaque = False
        self.address = 0
        self._names: list[bytes] = []
        self._ends: list[int] = []
        self._data = 0
        self._inline: tuple[bytearray, int] | None = None


def kind_of(node: int) -> int:
    """The file type of a node, as in a directory's entry."""
    return node & _KIND


class ImageWriter:
    """One image. A node is an int: nid, whether the inode is a compact one, file type."""

    def __init__(self, uuid: bytes = bytes(16)) -> None:
        self._uuid = uuid
        self._end = BLOCK
        self._pieces: list[Piece] = []
        self._run: list[bytes | bytearray | memoryview] = []
        """Content that is written one after the other from `_run_start` on."""
        self._run_start = self._run_end = BLOCK
        self._meta = bytearray()
        self._chunk = self._chunk_size = 0
        self._whole = self._padding = 0
        """Bytes that the file being written still has for blocks of its own, and zeros that fill up the last of them."""
        self._epoch: int | None = None
        self._links: dict[int, int] = {}
        self._nameless = 0
        self.metadata: list[tuple[int, int]] = []
        """Address and length of what is no file's whole block, once `finish` has been called."""
        self.inodes = 0
        self.content: tuple[int, ...] = ()
        """Where the content of the last file is: address and length of each piece in turn."""

    def resume(self, size: int, metadata: Sequence[tuple[int, int]], superblock: bytes) -> None:
        """Goes on behind an image that `finish` has ended with an empty root: its nodes are good in this one."""
        fields = ondisk.SUPERBLOCK.unpack(superblock)
        self._end = size
        self._run_end = 0
        self._epoch = fields[7] * _SECOND + fields[8]
        if self._epoch >= 1 << 63:
            self._epoch -= (1 << 64) * _SECOND
        self.metadata = [extent for extent in metadata if extent[0]]
        self.inodes = fields[6] - 1

    @property
    def size(self) -> int:
        """Bytes of the image so far; whole blocks."""
        return self._end

    def take(self) -> list[Piece]:
        """What is to be written now."""
        self._cut()
        pieces, self._pieces = self._pieces, []
        return pieces

    def _cut(self) -> None:
        """Hands out the content that is there, before what is handed out next: pieces come in the order of their making."""
        if self._run:
            self._pieces.append((self._run_start, self._run))
            self._run_start += sum(map(len, self._run))
            self._run = []

    def file(self, attributes: Attributes, size: int) -> int:
        """Begins a regular file, whose content follows through `data`. Returns its node."""
        return self._with_data(ondisk.REG, attributes, size, together=False)

    def data(self, view: memoryview | bytes) -> None:
        """The next bytes of the last file's content; never more than its size."""
        length = len(view)
        whole = self._whole
        if length > whole:
            if whole:
                self._run.append(view[:whole])
                view = view[whole:]
                self._whole = 0
            self._meta += view
            return
        self._run.append(view)
        self._whole = whole - length
        if length == whole and self._padding:
            self._run.append(_FILLER[: self._padding])

    def sparse_file(self, attributes: Attributes, size: int) -> tuple[int, int]:
        """A file of which only some parts are written, through `put`. Returns its node and its content's address."""
        blocks = (size + BLOCK - 1) & -BLOCK
        self._place(_EXTENDED_SIZE + len(attributes.encoded), 0)
        address = self._allocate(blocks)
        return self._inode(ondisk.REG, attributes, size, address // BLOCK, inline=False), address

    def put(self, address: int, view: memoryview | bytes) -> None:
        """Bytes of a sparse file's content, by address in the image."""
        self._cut()
        self._pieces.append((address, [view]))

    def symlink(self, attributes: Attributes, target: bytes) -> int:
        """A symbolic link. Returns its node."""
        node = self._with_data(ondisk.LNK, attributes, len(target), together=True)
        self.data(target)
        return node

    def device(self, kind: int, attributes: Attributes, number: int = 0) -> int:
        """A device, FIFO or socket. Returns its node."""
        self._place(_EXTENDED_SIZE + len(attributes.encoded), 0)
        return self._inode(kind, attributes, 0, number, inline=False)

    def link(self, node: int) -> None:
        """One more name leads to the node."""
        links = self._links.get(node, 1) + 1
        if node & _COMPACT and links > _COMPACT_LINKS_MAX:
            raise ImageError(f"a file has more than {_COMPACT_LINKS_MAX} names")
        self._links[node] = links

    def unlink(self, node: int) -> None:
        """One name less leads to the node; what it was stays in the image."""
        if self._links.get(node, 1) > 1:
            self._links[node] -= 1
        else:
            self.inodes -= 1
            self._nameless += 1

    def forget_names(self) -> None:
        """Each node has one name again, as if none had been linked or unlinked."""
        self._links.clear()
        self.inodes += self._nameless
        self._nameless = 0

    def finish(self, root: Directory) -> None:
        """Writes the directories and what was left open. Then `take` has the rest, and `size` and `metadata` are known."""
        self._cut()
        order = [root]
        for directory in order:
            below = [child for child in directory.children.values() if type(child) is not int]
            order += below  # type: ignore[arg-type]
            self._place_directory(directory, len(below))
        for directory in order:
            self._fill_directory(directory)
        self._end_chunk()
        if self._chunk + self._chunk_size == self._end:
            self._end = self._chunk + ((len(self._meta) + BLOCK - 1) & -BLOCK)
        for node, links in self._links.items():
            compact = node & _COMPACT
            packed = (ondisk.COMPACT_NLINK if compact else ondisk.EXTENDED_NLINK).pack(links)
            at = ondisk.COMPACT_NLINK_AT if compact else ondisk.EXTENDED_NLINK_AT
            self._pieces.append(((node >> _NID_SHIFT) * SLOT + at, [packed]))
        self._superblock()
        self.metadata.sort()

    def _allocate(self, size: int) -> int:
        address = self._end
        self._end = address + size
        if self._end > ondisk.MAX_BLOCKS * BLOCK:
            raise ImageError("the layer's files are larger than an EROFS image can be")
        return address

    def _blocks(self, size: int) -> int:
        """Room for content that is written at once, one after the other."""
        address = self._allocate(size)
        if address != self._run_end:
            self._cut()
            self._run_start = address
        self._run_end = address + size
        return address

    def _place(self, fixed: int, tail: int, together: bool = False) -> bool:
        """Brings the end of the metadata to where an inode of `fixed` bytes with its attributes may begin; whether the
        `tail` of its data goes there too. `together`: then all of it lies in one block."""
        meta = self._meta
        position = (len(meta) + SLOT - 1) & -SLOT
        offset = position & (BLOCK - 1)
        total = fixed + tail
        inline = True
        if offset + total > BLOCK:
            rest = BLOCK - offset
            if tail and (total > BLOCK or (rest > BLOCK - tail and not together)):
                inline = False
                total = fixed
            if offset + total > BLOCK and (total <= BLOCK or rest < _EXTENDED_SIZE):
                position += rest
        if position + total > self._chunk_size:
            self._new_chunk(total)
        else:
            meta += _FILLER[: position - len(meta)]
        return inline

    def _new_chunk(self, needed: int) -> None:
        self._end_chunk()
        self._chunk_size = max(_CHUNK, (needed + BLOCK - 1) & -BLOCK)
        self._chunk = self._allocate(self._chunk_size)
        self._meta = bytearray()

    def _end_chunk(self) -> None:
        if self._meta:
            self._cut()
            self._pieces.append((self._chunk, [self._meta]))
            self.metadata.append((self._chunk, len(self._meta)))

    def _with_data(self, kind: int, attributes: Attributes, size: int, *, together: bool) -> int:
        tail = size & (BLOCK - 1)
        fixed = _EXTENDED_SIZE + len(attributes.encoded)
        whole = size - tail
        self._padding = 0
        meta = self._meta
        position = (len(meta) + SLOT - 1) & -SLOT
        inline = together or tail <= _INLINE_MAX
        if inline and (position & (BLOCK - 1)) + fixed + tail <= BLOCK and position + fixed + tail <= self._chunk_size:
            meta += _FILLER[: position - len(meta)]
        elif not self._place(fixed, tail if inline else 0, together) or not inline:
            whole = size
            self._padding = BLOCK - tail
            tail = 0
        self._whole = whole
        address = self._blocks(whole + self._padding) if whole else 0
        node = self._inode(kind, attributes, size, address // BLOCK, inline=tail > 0)
        if not tail:
            self.content = (address, whole)
        elif whole:
            self.content = (address, whole, self._chunk + len(self._meta), tail)
        else:
            self.content = (self._chunk + len(self._meta), tail)
        return node

    def _inode(self, kind: int, attributes: Attributes, size: int, block: int, *, inline: bool) -> int:
        """An inode at the end of the metadata. `block` is where its data begins, or a device's number."""
        mode, uid, gid, mtime, encoded = attributes
        if self._epoch is None:
            self._epoch = mtime
        meta = self._meta
        node = (self._chunk + len(meta)) // SLOT << _NID_SHIFT | kind
        self.inodes = number = self.inodes + 1
        words = xattrs.count(encoded) if encoded else 0
        if mtime == self._epoch and (uid | gid) <= _COMPACT_ID_MAX and size <= _COMPACT_SIZE_MAX:
            layout = ondisk.INLINE_COMPACT if inline else ondisk.PLAIN_COMPACT
            meta += _pack_compact(layout, words, mode, 1, size, 0, block, number, uid, gid, 0)
            node |= _COMPACT
        else:
            layout = ondisk.INLINE_EXTENDED if inline else ondisk.PLAIN_EXTENDED
            seconds, nanoseconds = divmod(mtime, _SECOND)
            meta += _pack_extended(layout, words, mode, 0, size, block, number, uid, gid, seconds, nanoseconds, 1)
        if encoded:
            meta += encoded
        return node

    def _place_directory(self, directory: Directory, below: int) -> None:
        """Decides where a directory goes, and writes its inode: what its names lead to may not have a place yet."""
        names = directory._names = sorted([*directory.children, b".", b".."])
        ends = directory._ends = ondisk.split_names(names)
        start = ends[-2] if len(ends) > 1 else 0
        last = ondisk.DIRENT.size * (len(names) - start) + sum(map(len, names[start:]))
        size = (len(ends) - 1) * BLOCK + last
        tail = size & (BLOCK - 1)
        if directory.parent is None:
            self._place_root(directory, size, tail, below)
            return
        encoded = xattrs.encode(directory.xattrs)
        inline = self._place(_EXTENDED_SIZE + len(encoded), tail)
        whole = size - tail if inline else (size + BLOCK - 1) & -BLOCK
        directory._data = self._allocate(whole) if whole else 0
        directory.address = self._chunk + len(self._meta)
        self._meta += self._directory_inode(directory, size, encoded, below, inline=inline and tail > 0) + encoded
        if inline and tail:
            directory._inline = (self._meta, len(self._meta))
            self._meta += _FILLER[:tail]

    def _place_root(self, root: Directory, size: int, tail: int, below: int) -> None:
        """The root has the rest of block 0; attributes for which that is too little are put into the shared area."""
        room = BLOCK - ondisk.ROOT_ADDRESS - _EXTENDED_SIZE
        kept, others, area = xattrs.share(root.xattrs, room)
        self._shared = self._own_blocks(area) if area else 0
        encoded = xattrs.encode(kept, [number for number, _name in others])
        inline = tail > 0 and len(encoded) + tail <= room
        whole = size - tail if inline else (size + BLOCK - 1) & -BLOCK
        root._data = self._allocate(whole) if whole else 0
        root.address = ondisk.ROOT_ADDRESS
        block = bytearray(_FILLER[: ondisk.ROOT_ADDRESS])
        block += self._directory_inode(root, size, encoded, below, inline=inline) + encoded
        if inline:
            root._inline = (block, len(block))
            block += _FILLER[:tail]
        self._block0 = block

    def _own_blocks(self, data: bytes) -> int:
        address = self._allocate((len(data) + BLOCK - 1) & -BLOCK)
        self._pieces.append((address, [data]))
        self.metadata.append((address, len(data)))
        return address

    def _directory_inode(self, directory: Directory, size: int, encoded: bytes, below: int, *, inline: bool) -> bytes:
        self.inodes += 1
        seconds, nanoseconds = divmod(directory.mtime, _SECOND)
        return ondisk.EXTENDED.pack(
            ondisk.INLINE_EXTENDED if inline else ondisk.PLAIN_EXTENDED,
            xattrs.count(encoded),
            ondisk.MODES[ondisk.DIR] | directory.mode,
            0,
            size,
            directory._data // BLOCK,
            self.inodes & 0xFFFFFFFF,
            directory.uid,
            directory.gid,
            seconds,
            nanoseconds,
            2 + below,
        )

    def _fill_directory(self, directory: Directory) -> None:
        own = (directory.address // SLOT, ondisk.DIR)
        above = own if directory.parent is None else (directory.parent.address // SLOT, ondisk.DIR)
        children = directory.children
        nodes = []
        for name in directory._names:
            child = children.get(name)
            if type(child) is int:
                nodes.append((child >> _NID_SHIFT, child & _KIND))
            elif child is None:
                nodes.append(own if name == b"." else above)
            else:
                nodes.append((child.address // SLOT, ondisk.DIR))  # type: ignore[union-attr]
        blocks: list[bytes | bytearray | memoryview] = []
        start = 0
        for end in directory._ends:
            blocks.append(ondisk.pack_names(directory._names[start:end], nodes[start:end]))
            start = end
        directory._names = []
        if directory._inline is not None:
            buffer, at = directory._inline
            tail = blocks.pop()
            buffer[at : at + len(tail)] = tail
        if blocks:
            blocks = [bytes(block).ljust(BLOCK, b"\0") for block in blocks]
            self._pieces.append((directory._data, blocks))
            self.metadata.append((directory._data, len(blocks) * BLOCK))

    def _superblock(self) -> None:
        seconds, nanoseconds = divmod(self._epoch or 0, _SECOND)
        self._block0[ondisk.SUPER_OFFSET : ondisk.ROOT_ADDRESS] = ondisk.SUPERBLOCK.pack(
            ondisk.MAGIC,
            0,
            ondisk.MTIME,
            BLOCK.bit_length() - 1,
            0,
            ondisk.ROOT_ADDRESS // SLOT,
            self.inodes,
            seconds & (1 << 64) - 1,
            nanoseconds,
            self._end // BLOCK,
            0,
            self._shared // BLOCK,
            self._uuid,
            _VOLUME,
            *(0, 0, 0, 0, 0, 0, 0, 0, 0),
        )
        self._pieces.append((0, [self._block0]))
        self.metadata.append((0, len(self._block0)))
