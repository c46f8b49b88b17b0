"""Reading tar without I/O: bytes in, entries and their data out.

    reader.receive_data(chunk)
    while (event := reader.next_event()) is not None:       None: more bytes are needed
        Entry    a header, everything that precedes the data
        Data     bytes of the last entry's content, in order
        Tail     bytes after the end-of-archive marker
    reader.close()                                          raises if the archive stops in the middle

Formats: v7, ustar, GNU (long names, base-256 numbers, sparse) and PAX (records, sparse 0.0, 0.1, 1.0, extended attributes).
Names are bytes, since not all are UTF-8. What is read is what Go's archive/tar reads, because layers are written by Go
programs: global PAX records are read over, a link or directory has no data whatever its size field says, and an archive may
end without its two zero blocks.

Every byte of the archive is in exactly one event: `Entry.raw` has all bytes since the data before it (padding, extension
headers, the header itself). So the archive can be put together again from the events; see skeleton.py.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from imagesvc.limits import MAX_NAME_BYTES, MAX_SPARSE_SEGMENTS, MAX_TAR_METADATA_BYTES
from imagesvc.tar import header
from imagesvc.tar.header import TarError

BLOCK = 512
REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

# POSIX.1-2008, "ustar Interchange Format": name mode uid gid size mtime chksum typeflag linkname magic+version
# uname gname devmajor devminor prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_ZERO_BLOCK = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."
_MAX_ID = (1 << 32) - 2
"""(uid_t)-1 means "leave it" to chown."""
_MAX_SIZE = (1 << 63) - 1
_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1
"""Of a device (MINORBITS)."""


class Entry:
    """One member of the archive. Sizes in bytes, times in nanoseconds since the epoch."""

    __slots__ = (
        *("name", "link", "type", "mode", "uid", "gid", "mtime", "size", "stored"),
        *("major", "minor", "xattrs", "segments", "raw"),
    )

    def __init__(self) -> None:
        self.name = b""
        self.link = b""
        self.type = REGULAR
        self.mode = 0
        self.uid = 0
        self.gid = 0
        self.mtime = 0
        self.size = 0
        """Bytes of the file once extracted."""
        self.stored = 0
        """Bytes of data in the archive: less than `size` for a sparse file."""
        self.major = 0
        self.minor = 0
        self.xattrs: dict[bytes, bytes] = {}
        self.segments: list[tuple[int, int]] | None = None
        """A sparse file's data segments as (offset, length), in the order of the stored data."""
        self.raw = b""


class Data(NamedTuple):
    """A piece of the content of the entry before it."""

    view: memoryview
    last: bool


class Tail(NamedTuple):
    """Bytes that follow the end-of-archive marker, the marker included."""

    raw: bytes


class TarReader:
    """The state of one archive being read."""

    def __init__(self) -> None:
        self._buffer = b""
        self._view = memoryview(b"")
        self._position = 0
        self._raw: list[bytes] = []
        self._data_left = 0
        self._padding = 0
        self._ended = False
        self._zero_blocks = 0
        self._pax: dict[bytes, bytes] = {}
        self._pax_map: list[bytes] = []
        self._long_name: bytes | None = None
        self._long_link: bytes | None = None
        self._pending: tuple[Entry, str] | None = None
        self._metadata_bytes = 0
        self._sparse_1_0: int | None = None
        """Padding after the data of a sparse 1.0 file, whose map has taken part of the stored bytes."""

    def receive_data(self, data: bytes) -> None:
        """Takes in the next bytes of the archive."""
        rest = self._buffer[self._position :]
        self._buffer = rest + data if rest else data
        self._view = memoryview(self._buffer)
        self._position = 0

    def close(self) -> None:
        """The archive has no more bytes."""
        whole = not (self._data_left or self._pending or self._pax or self._long_name or self._long_link)
        if not whole or (self._position < len(self._buffer) and not self._ended):
            raise TarError("the archive ends in the middle of an entry")

    def skip_data(self) -> None:
        """The content of the entry that was handed out last does not come: the padding behind it does."""
        self._data_left = 0

    def next_event(self) -> Entry | Data | Tail | None:
        """The next event, or None when `receive_data` is needed first."""
        if self._data_left:
            return self._next_data()
        if self._ended:
            return self._next_tail()
        if self._padding and not self._take_padding():
            return None
        while True:
            if self._pending is not None:
                return self._finish_pending()
            block = self._buffer[self._position : self._position + BLOCK]
            if len(block) < BLOCK:
                return None
            if block == _ZERO_BLOCK:
                self._take(BLOCK)
                self._zero_blocks += 1
                if self._zero_blocks == 2:
                    self._ended = True
                    return self._next_tail()
                continue
            if self._zero_blocks:
                raise TarError("a zero block stands between entries")
            size = header.check(block)
            kind = block[156:157]
            if kind in b"xgLK":
                if not self._take_extension(kind, size):
                    return None
                continue
            if kind == b"V" and not size:
                self._take(BLOCK)
                continue
            self._take(BLOCK)
            entry = self._entry(block, kind, size)
            if self._pending is None:
                return self._begin(entry)

    def _take(self, length: int) -> bytes:
        start = self._position
        self._position = end = start + length
        piece = self._buffer[start:end]
        self._raw.append(piece)
        return piece

    def _take_padding(self) -> bool:
        piece = self._take(min(self._padding, len(self._buffer) - self._position))
        self._padding -= len(piece)
        return not self._padding

    def _next_data(self) -> Data | None:
        start = self._position
        length = min(self._data_left, len(self._buffer) - start)
        if not length:
            return None
        self._position = start + length
        self._data_left -= length
        return Data(self._view[start : start + length], not self._data_left)

    def _next_tail(self) -> Tail | None:
        self._raw.append(self._buffer[self._position :])
        self._position = len(self._buffer)
        raw = b"".join(self._raw)
        self._raw.clear()
        return Tail(raw) if raw else None

    def _begin(self, entry: Entry) -> Entry:
        """Hands out an entry whose metadata is complete."""
        entry.raw = b"".join(self._raw)
        self._raw.clear()
        self._metadata_bytes = 0
        self._data_left = entry.stored
        self._padding = -entry.stored % BLOCK if self._sparse_1_0 is None else self._sparse_1_0
        return entry

    def _take_extension(self, kind: bytes, size: int) -> bool:
        """Reads a PAX header or a GNU long name, once it is here whole."""
        self._bound_metadata(size)
        total = BLOCK + size + -size % BLOCK
        if len(self._buffer) - self._position < total:
            return False
        body = self._take(total)[BLOCK : BLOCK + size]
        if kind == b"L":
            self._long_name = body.partition(b"\0")[0]
        elif kind == b"K":
            self._long_link = body.partition(b"\0")[0]
        elif kind == b"g":
            # Go's archive/tar hands these out and applies none, and neither do scanners that are written in it: an image
            # must not show one file to them and another to the node. What stood before it is forgotten, as there.
            _pax_records(body)
            self._pax, self._pax_map, self._long_name, self._long_link = {}, [], None, None
        else:
            self._pax, self._pax_map = _pax_records(body)
        return True

    def _bound_metadata(self, size: int) -> None:
        self._metadata_bytes += size
        if self._metadata_bytes > MAX_TAR_METADATA_BYTES:
            raise TarError(f"the headers of one entry have more than {MAX_TAR_METADATA_BYTES} bytes")

    def _entry(self, block: bytes, kind: bytes, size: int) -> Entry:
        """Makes an entry of a header block and the extension headers before it."""
        # Quoted above _HEADER; GNU's magic is b"ustar  \0" and its prefix field holds other things.
        (name, mode, uid, gid, _size, mtime, _sum, _kind, link, magic, _u, _g, major, minor, prefix) = _HEADER.unpack(block)
        entry = Entry()
        if name[99]:
            entry.name = name
        else:
            entry.name = name[: name.find(0)]
        if prefix[0] and (prefix := header.prefix(block, magic, prefix)):
            entry.name = prefix + b"/" + entry.name
        entry.mode = header.number(mode) & 0o7777
        entry.uid = header.number(uid)
        entry.gid = header.number(gid)
        entry.mtime = header.number(mtime) * 1_000_000_000
        if link[0]:
            entry.link = link.partition(b"\0")[0]
        old_sparse = kind == b"S"
        old_directory = kind == b"\0"
        if kind in (b"\0", b"7", b"S"):
            kind = REGULAR
        pax = self._pax
        if pax:
            size = _apply_pax(entry, pax, size)
        # GNU's names count for more than those of PAX, whichever stands first: so does Go read them.
        entry.name, self._long_name = self._long_name or entry.name, None
        entry.link, self._long_link = self._long_link or entry.link, None
        if old_directory and entry.name.endswith(b"/"):
            # v7 had no type for directories.
            kind = DIRECTORY
        if kind in b"34":
            entry.major, entry.minor = header.number(major), header.number(minor)
        elif kind not in b"01256":
            raise TarError(f"{_shown(entry.name)} has the unknown type {kind!r}")
        entry.type = kind
        if len(entry.name) > MAX_NAME_BYTES or len(entry.link) > MAX_NAME_BYTES:
            raise TarError(f"a name is longer than {MAX_NAME_BYTES} bytes")
        _check_numbers(entry, size)
        if kind == REGULAR:
            entry.size = entry.stored = size
        self._sparse_1_0 = None
        pairs = self._pax_map
        if kind == REGULAR and (old_sparse or ((pax or pairs) and _is_sparse(pax, pairs))):
            self._begin_sparse(entry, pax, block, old_sparse)
        if pax or pairs:
            self._pax, self._pax_map = {}, []
        return entry

    def _begin_sparse(self, entry: Entry, pax: dict[bytes, bytes], block: bytes, old: bool) -> None:
        """Finds the map of a sparse file: in the header, in PAX records, or in front of the data."""
        if old:
            entry.size = header.number(block[483:495])
            entry.segments = _old_segments(block[386:482], 4)
            if block[482]:
                self._pending = (entry, "old")
            else:
                _check_segments(entry)
            return
        if pax.get(b"GNU.sparse.name"):
            entry.name = pax[b"GNU.sparse.name"]
        entry.size = _decimal(pax.get(b"GNU.sparse.size") or pax.get(b"GNU.sparse.realsize") or b"")
        if pax.get(b"GNU.sparse.major") == b"1":
            self._pending = (entry, "1.0")
            return
        numbers = self._pax_map or pax.get(b"GNU.sparse.map", b"").split(b",")
        entry.segments = _pairs([_decimal(n) for n in numbers if n])
        _check_segments(entry)

    def _finish_pending(self) -> Entry | None:
        """Reads the rest of a sparse map that follows the header."""
        assert self._pending is not None
        entry, form = self._pending
        if form == "old":
            return self._finish_old(entry)
        return self._finish_1_0(entry)

    def _finish_old(self, entry: Entry) -> Entry | None:
        assert entry.segments is not None
        while len(self._buffer) - self._position >= BLOCK:
            self._bound_metadata(BLOCK)
            block = self._take(BLOCK)
            entry.segments += _old_segments(block[:504], 21)
            if not block[504]:
                self._pending = None
                _check_segments(entry)
                return self._begin(entry)
        return None

    def _finish_1_0(self, entry: Entry) -> Entry | None:
        """`<count>\\n` then offset and length of each segment, one number a line, padded to a block."""
        window = self._buffer[self._position : self._position + MAX_TAR_METADATA_BYTES]
        lines = window[: entry.stored].split(b"\n", 1)
        if len(lines) == 2:
            count = _decimal(lines[0])
            if count > MAX_SPARSE_SEGMENTS:
                raise TarError(f"{_shown(entry.name)} has more than {MAX_SPARSE_SEGMENTS} sparse segments")
            parts = lines[1].split(b"\n", 2 * count)
            if len(parts) == 2 * count + 1:
                used = len(window[: entry.stored]) - len(parts[-1])
                used += -used % BLOCK
                if len(self._buffer) - self._position >= used:
                    entry.segments = _pairs([_decimal(n) for n in parts[:-1]])
                    self._sparse_1_0 = -entry.stored % BLOCK
                    entry.stored -= used
                    self._take(used)
                    self._pending = None
                    _check_segments(entry)
                    return self._begin(entry)
        if len(window) >= min(entry.stored, MAX_TAR_METADATA_BYTES):
            raise TarError(f"{_shown(entry.name)} has no sparse map")
        return None


def _check_numbers(entry: Entry, size: int) -> None:
    """What the kernel cannot take is refused here, by name. Times are brought into range by who sets them."""
    if (
        0 <= entry.uid <= _MAX_ID
        and 0 <= entry.gid <= _MAX_ID
        and 0 <= size <= _MAX_SIZE
        and not (entry.major or entry.minor)
    ):
        return
    for what, value, limit in (
        ("owner", entry.uid, _MAX_ID),
        ("group", entry.gid, _MAX_ID),
        ("size", size, _MAX_SIZE),
        ("device number", entry.major, _MAX_MAJOR),
        ("device number", entry.minor, _MAX_MINOR),
    ):
        if not 0 <= value <= limit:
            raise TarError(f"{_shown(entry.name)} has the {what} {value if abs(value) < 1 << 64 else 'beyond 64 bits'}")


def _is_sparse(pax: dict[bytes, bytes], pairs: list[bytes]) -> bool:
    """Whether the records are those of a sparse file; one of a version that Go does not know is a file as it stands."""
    version = (pax.get(b"GNU.sparse.major", b""), pax.get(b"GNU.sparse.minor", b""))
    if version == (b"", b""):
        return bool(pairs or pax.get(b"GNU.sparse.map"))
    return version in ((b"0", b"0"), (b"0", b"1"), (b"1", b"0"))


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise TarError(f"{text[:40]!r} is not a decimal number")
    return int(text)


def _pax_records(body: bytes) -> tuple[dict[bytes, bytes], list[bytes]]:
    """`"%d %s=%s\\n", <length>, <keyword>, <value>`, and the sparse 0.0 map, whose keywords repeat."""
    records: dict[bytes, bytes] = {}
    sparse_map: list[bytes] = []
    position = 0
    while position < len(body):
        space = body.find(b" ", position, position + 20)
        digits = body[position:space]
        if space < 0 or not digits.isdigit():
            if not body[position:].strip(b"\0"):
                break
            raise TarError("a PAX record has no length")
        end = position + int(digits)
        keyword, equals, value = body[space + 1 : end].partition(b"=")
        if end > len(body) or end <= space or not equals or value[-1:] != b"\n":
            raise TarError("a PAX record's length is wrong")
        position = end
        if keyword in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse_map.append(value[:-1])
        else:
            records[keyword] = value[:-1]
    return records, sparse_map


def _apply_pax(entry: Entry, pax: dict[bytes, bytes], size: int) -> int:
    """PAX records override the header; an empty value means "as in the header". Returns the size of the data."""
    for keyword, value in pax.items():
        if keyword.startswith(_XATTR):
            entry.xattrs[keyword[len(_XATTR) :]] = value
        elif not value:
            continue
        elif keyword == b"path":
            entry.name = value
        elif keyword == b"linkpath":
            entry.link = value
        elif keyword == b"size":
            size = _decimal(value)
        elif keyword == b"uid":
            entry.uid = _decimal(value)
        elif keyword == b"gid":
            entry.gid = _decimal(value)
        elif keyword == b"mtime":
            entry.mtime = _nanoseconds(value)
    return size


def _nanoseconds(value: bytes) -> int:
    """`[-]seconds[.fraction]`, of which nine digits count."""
    whole, _, fraction = value.partition(b".")
    negative = whole.startswith(b"-")
    nanoseconds = _decimal(whole.removeprefix(b"-") or b"0") * 1_000_000_000
    nanoseconds += _decimal((fraction[:9] + b"000000000")[:9])
    return -nanoseconds if negative else nanoseconds


def _old_segments(area: bytes, count: int) -> list[tuple[int, int]]:
    """GNU's struct sparse: offset and length of 12 characters each; an empty one ends the list."""
    segments = []
    for i in range(count):
        pair = area[24 * i : 24 * i + 24]
        if len(pair) < 24 or not pair[0]:
            break
        segments.append((header.number(pair[:12]), header.number(pair[12:])))
    return segments


def _pairs(numbers: list[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise TarError("a sparse map has an odd number of values")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _check_segments(entry: Entry) -> None:
    """Segments rise, do not overlap, fit the file, and are what is stored."""
    assert entry.segments is not None
    if len(entry.segments) > MAX_SPARSE_SEGMENTS:
        raise TarError(f"{_shown(entry.name)} has more than {MAX_SPARSE_SEGMENTS} sparse segments")
    end = total = 0
    for offset, length in entry.segments:
        if offset < end or length < 0:
            raise TarError(f"{_shown(entry.name)}: its sparse segments overlap")
        end = offset + length
        total += length
    if entry.size > _MAX_SIZE or end > entry.size or total != entry.stored:
        raise TarError(f"{_shown(entry.name)}: its sparse map does not fit its data")


def _shown(name: bytes) -> str:
    return repr(name.decode(errors="backslashreplace")[:200])
