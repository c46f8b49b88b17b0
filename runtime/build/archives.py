"""Archives that users have: tar, as it is or compressed by gzip, bzip2, xz or zstd. The content says which."""

from __future__ import annotations

import bz2
import functools
import lzma
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from imagesvc.tar import header, inflate
from imagesvc.tar.header import TarError
from imagesvc.tar.inflate import InflateError
from imagesvc.tar.tar_stream import BLOCK, Data, Entry, TarReader

_PIECE: Final = 1 << 18
_XZ_MEMORY: Final = 256 << 20
"""Bytes that an xz stream may ask for: more than the 65 MiB of `xz -9`."""


_MAGICS: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_AHEAD: Final = 1 << 20
"""Bytes that give the beginning of any compressed archive: bzip2 gives nothing before the end of a block of 900 kB."""


class Stream(Protocol):
    """What bytes are read from; b"" at the end."""

    def read(self, size: int, /) -> bytes:
        """The next bytes."""
        ...


class Peeked:
    """A stream whose first bytes can be looked at before they are read."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._first = b""

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay."""
        while len(self._first) < size and (piece := self._stream.read(size - len(self._first))):
            self._first += piece
        return self._first[:size]

    def read(self, size: int = _PIECE, /) -> bytes:
        """The next bytes."""
        if not self._first:
            return self._stream.read(size)
        piece, self._first = self._first[:size], self._first[size:]
        return piece


def is_archive(stream: Peeked) -> bool:
    """Whether it begins as an archive does; nothing is taken from it that `read` would not give again."""
    first = stream.peek(BLOCK)
    if first.startswith(_MAGICS):
        first = stream.peek(_AHEAD)
    ahead = iter((first,))
    try:
        reader = open_reader(lambda: next(ahead, b""))
        block = b""
        while len(block) < BLOCK and (piece := reader.read()):
            block += piece
    except (InflateError, EOFError):
        return len(block) >= BLOCK and _is_header(block)
    return _is_header(block)


def _is_header(block: bytes) -> bool:
    if len(block) < BLOCK or not block[:BLOCK].strip(b"\0"):
        return False
    try:
        header.check(block[:BLOCK])
    except TarError:
        return False
    return True


def open_reader(source: Callable[[], bytes]) -> inflate.Reader:
    """As inflate.open_reader, and for bzip2 and xz."""
    first = b""
    while len(first) < 6 and (chunk := source()):
        first += chunk
    pushed = [first] if first else []

    def pull() -> bytes:
        return pushed.pop() if pushed else source()

    if first.startswith(b"BZh"):
        return _Members(pull, bz2.BZ2Decompressor, "bzip2")
    if first.startswith(b"\xfd7zXZ\x00"):
        return _Members(pull, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY), "xz")
    return inflate.open_reader(pull)


class _Members:
    """bzip2 and xz: streams that may follow one another."""

    def __init__(
        self, source: Callable[[], bytes], make: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor], name: str
    ) -> None:
        self._source = source
        self._make = make
        self._name = name
        self._decompressor = make()

    def read(self) -> bytes:
        while True:
            data = b""
            if self._decompressor.eof:
                data = self._decompressor.unused_data.lstrip(b"\0") or self._source().lstrip(b"\0")
                if not data:
                    return b""
                self._decompressor = self._make()
            elif self._decompressor.needs_input:
                data = self._source()
                if not data:
                    raise InflateError(f"the {self._name} data ends too early")
            try:
                piece = self._decompressor.decompress(data, _PIECE)
            except (OSError, lzma.LZMAError, EOFError) as error:
                raise InflateError(f"the {self._name} data is damaged: {error}") from None
            if piece:
                return piece


def events(stream: Stream, *, plain: bool = False) -> Iterator[Entry | Data]:
    """What is in an archive, compressed or not; `plain` for one that is not. Raises TarError, InflateError, OSError."""
    read = functools.partial(stream.read, _PIECE)
    source = read if plain else open_reader(read).read
    reader = TarReader()
    while piece := source():
        reader.receive_data(piece)
        while (event := reader.next_event()) is not None:
            if isinstance(event, Entry | Data):
                yield event
    reader.close()
