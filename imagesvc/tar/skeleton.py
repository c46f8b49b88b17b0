"""A layer's tar without its file contents, so that the same tar can be put together again from the unpacked layer.

Compressed blobs need not be kept: the skeleton is a few per cent of them, and export, push and verify get the uncompressed
layer back byte for byte (its digest is the diff id). It is gzip, a sequence of records, little endian:

    'R' u32 length, bytes                                            bytes of the archive as they were
    'F' u32 length, path; u64 size; u32 n, n * (u64 offset, u64 length)   content of a file; n segments if it is sparse
    'X' u32 length, u64 node, n * (u64 offset, u64 length)           content of a node, which these pieces of the layer's
                                                                     file have

The layer is a directory with files, or one file that has their contents (imagesvc/erofs).
"""

from __future__ import annotations

import gzip
import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, cast

from isal import igzip, igzip_lib

from imagesvc.limits import MIB
from imagesvc.tar.tar_stream import Entry
from kernel import syscalls

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_DeflateError = cast(type[Exception], igzip_lib.error)
_HEAD = struct.Struct("<cI")
_pack_head = _HEAD.pack
_SIZE = struct.Struct("<QI")
Record = tuple[bytes, bytes, int, list[tuple[int, int]]]
"""Kind, bytes or path, size, segments."""
_NODE = struct.Struct("<Q")
_SEGMENT = struct.Struct("<QQ")
_BUFFER = 1 * MIB
_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS


class SkeletonWriter:
    """Records the events of one tar as they are unpacked."""

    def __init__(self, out: str | BinaryIO) -> None:
        """`out` is a path or an open file."""
        self._out: BinaryIO = igzip.open(out, "wb", compresslevel=1)  # type: ignore[no-untyped-call]
        self._parts: list[bytes] = []
        self._pending = 0
        self.whole = True
        """False once a file was replaced by a later entry: its content is gone, and so is the way back."""

    def raw(self, data: bytes) -> None:
        """Bytes of the archive that are no file content."""
        self._add(_pack_head(b"R", len(data)) + data)

    def file(self, entry: Entry, path: bytes) -> None:
        """The content of a file, which lies at `path` below the layer's directory."""
        segments = entry.segments or []
        body = _HEAD.pack(b"F", len(path)) + path + _SIZE.pack(entry.stored, len(segments))
        self._add(body + b"".join(_SEGMENT.pack(*segment) for segment in segments))

    def pieces(self, node: int, numbers: Sequence[int]) -> None:
        """The content of a file, which lies there in the layer's own file: offset and length of each piece in turn."""
        count = len(numbers) + 1
        self._add(struct.pack(f"<cI{count}Q", b"X", count * 8, node, *numbers))

    def _add(self, data: bytes) -> None:
        self._parts.append(data)
        self._pending += len(data)
        if self._pending > _BUFFER:
            self._flush()

    def _flush(self) -> None:
        self._out.write(b"".join(self._parts))
        self._parts.clear()
        self._pending = 0

    def close(self) -> bool:
        """Finishes the file; returns whether it can rebuild the archive."""
        self._flush()
        self._out.close()
        return self.whole


class NoSkeleton(SkeletonWriter):
    """For where nobody will want the archive back."""

    def __init__(self) -> None:
        self.whole = False

    def _add(self, data: bytes) -> None:
        pass

    def close(self) -> bool:
        """Nothing can be rebuilt."""
        return False


def rebuild(skeleton: str, root: str, write: Callable[[bytes], object]) -> None:
    """Writes the archive that was unpacked into `root`.

    Raises:
        OSError: a file of the layer is missing or cannot be read.
        ValueError: the skeleton is damaged, or a file is shorter than it was.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with igzip.open(skeleton, "rb") as stream:  # type: ignore[no-untyped-call]
            for kind, payload, stored, segments in _records(stream):
                if kind == b"R":
                    write(payload)
                elif kind == b"X":
                    raise ValueError("the skeleton is not that of a layer in a directory")
                else:
                    _copy(directory, payload, stored, segments, write)
    finally:
        os.close(directory)


def rebuild_from_file(layer: int, offset: int, length: int, write: Callable[[bytes], object]) -> None:
    """The same for a layer that is a file, which has its skeleton at `offset`. Raises as `rebuild`."""
    for kind, payload, _stored, _segments in records_of(layer, offset, length):
        if kind == b"R":
            write(payload)
            continue
        if kind != b"X" or len(payload) % _SEGMENT.size != _NODE.size:
            raise ValueError("the skeleton is not that of a layer in a file")
        for start, size in _SEGMENT.iter_unpack(payload[_NODE.size :]):
            _copy_range(layer, start, size, write)


def records_of(descriptor: int, offset: int, length: int) -> Iterator[Record]:
    """The records of a skeleton that lies in a file. Raises as `rebuild`."""
    part = io.BufferedReader(_Part(descriptor, offset, length))
    with igzip.open(part, "rb") as stream:  # type: ignore[no-untyped-call]
        yield from _records(stream)


def node_of(payload: bytes) -> int:
    """The node of a record of the kind X."""
    node: int = _NODE.unpack_from(payload)[0]
    return node


def _copy_range(layer: int, position: int, size: int, write: Callable[[bytes], object]) -> None:
    end = position + size
    while position < end:
        chunk = os.pread(layer, min(_BUFFER, end - position), position)
        if not chunk:
            raise ValueError("the layer's file is shorter than it was")
        write(chunk)
        position += len(chunk)


class _Part(io.RawIOBase):
    """Some bytes of a file, as if they were all of it."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor = descriptor
        self._position = offset
        self._end = offset + length

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """The next bytes."""
        view = memoryview(buffer)
        count = os.preadv(self._descriptor, [view[: self._end - self._position]], self._position)
        self._position += count
        return count


def _records(stream: BinaryIO) -> Iterator[Record]:
    try:
        yield from _read_records(stream)
    except (gzip.BadGzipFile, EOFError, _DeflateError) as error:
        raise ValueError(f"the skeleton is damaged: {error}") from None


def _read_records(stream: BinaryIO) -> Iterator[Record]:
    while head := stream.read(_HEAD.size):
        kind, length = _HEAD.unpack(_exactly(head, _HEAD.size))
        payload = _exactly(stream.read(length), length)
        if kind in (b"R", b"X"):
            yield kind, payload, 0, []
        elif kind == b"F":
            stored, count = _SIZE.unpack(_exactly(stream.read(_SIZE.size), _SIZE.size))
            table = _exactly(stream.read(count * _SEGMENT.size), count * _SEGMENT.size)
            yield kind, payload, stored, list(_SEGMENT.iter_unpack(table))
        else:
            raise ValueError(f"the skeleton has a record of unknown kind {kind!r}")


def _exactly(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise ValueError("the skeleton ends in the middle of a record")
    return data


def _copy(
    directory: int, path: bytes, stored: int, segments: list[tuple[int, int]], write: Callable[[bytes], object]
) -> None:
    """The path is as long as it may be below the layer's directory, and so too long from the root."""
    descriptor = syscalls.openat2(directory, path, os.O_RDONLY | os.O_NONBLOCK, resolve=_BENEATH)
    try:
        for offset, length in segments or [(0, stored)]:
            position, end = offset, offset + length
            while position < end:
                chunk = os.pread(descriptor, min(_BUFFER, end - position), position)
                if not chunk:
                    raise ValueError(f"{os.fsdecode(path)} is shorter than it was")
                write(chunk)
                position += len(chunk)
    finally:
        os.close(descriptor)
