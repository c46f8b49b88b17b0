"""Writing tar without I/O: an entry in, its header blocks out. ustar, with PAX records for what does not fit.

The same entry always gives the same bytes: no user names, no access times, PAX records sorted.
"""

from __future__ import annotations

from imagesvc.tar.tar_stream import BLOCK, DIRECTORY, REGULAR, Entry

END = bytes(2 * BLOCK)
"""What ends an archive."""
_NAME_FIELD = 100
_OCTAL_7 = 0o7777777
_OCTAL_11 = 0o77777777777
_SECOND = 1_000_000_000


def header(entry: Entry) -> bytes:
    """The blocks that stand before the entry's data: a PAX header if one is needed, and the entry's own."""
    records: dict[bytes, bytes] = {b"SCHILY.xattr." + name: value for name, value in entry.xattrs.items()}
    name = entry.name
    if len(name) > _NAME_FIELD:
        records[b"path"] = name
    if len(entry.link) > _NAME_FIELD:
        records[b"linkpath"] = entry.link
    for keyword, number, limit in (
        (b"uid", entry.uid, _OCTAL_7),
        (b"gid", entry.gid, _OCTAL_7),
        (b"size", entry.size, _OCTAL_11),
    ):
        if number > limit:
            records[keyword] = b"%d" % number
    seconds, nanoseconds = divmod(entry.mtime, _SECOND)
    if nanoseconds or not 0 <= seconds <= _OCTAL_11:
        records[b"mtime"] = _decimal(entry.mtime)
    return _extension(records) + _block(entry, name[:_NAME_FIELD], seconds if 0 <= seconds <= _OCTAL_11 else 0)


def padding(size: int) -> bytes:
    """What fills the last block of an entry's data."""
    return bytes(-size % BLOCK)


def file_entry(name: bytes, size: int) -> Entry:
    """A plain file, for archives that this project makes of documents and blobs."""
    entry = Entry()
    entry.name, entry.size, entry.mode = name, size, 0o644
    return entry


def directory_entry(name: bytes) -> Entry:
    """A plain directory."""
    entry = Entry()
    entry.name, entry.type, entry.mode = name, DIRECTORY, 0o755
    return entry


def _extension(records: dict[bytes, bytes]) -> bytes:
    if not records:
        return b""
    body = b"".join(_record(keyword, value) for keyword, value in sorted(records.items()))
    entry = Entry()
    entry.name, entry.type, entry.mode, entry.size = b"././@PaxHeader", b"x", 0o644, len(body)
    return _block(entry, entry.name, 0) + body + padding(len(body))


def _record(keyword: bytes, value: bytes) -> bytes:
    """`"%d %s=%s\\n"`, where the length counts itself."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, keyword, value)


def _block(entry: Entry, name: bytes, seconds: int) -> bytes:
    size = entry.size if entry.type in (REGULAR, b"x") and entry.size <= _OCTAL_11 else 0
    device = (b"%07o\0" % entry.major, b"%07o\0" % entry.minor) if entry.type in b"34" else (b"0000000\0",) * 2
    link = entry.link[:_NAME_FIELD]
    fields = (
        name.ljust(_NAME_FIELD, b"\0"),
        b"%07o\0" % (entry.mode & 0o7777),
        b"%07o\0" % min(entry.uid, _OCTAL_7),
        b"%07o\0" % min(entry.gid, _OCTAL_7),
        b"%011o\0" % size,
        b"%011o\0" % seconds,
        b" " * 8,
        entry.type,
        link.ljust(_NAME_FIELD, b"\0"),
        b"ustar\00000",
        bytes(64),
        *device,
        bytes(155 + 12),
    )
    block = b"".join(fields)
    assert len(block) == BLOCK
    checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum + block[156:]


def _decimal(nanoseconds: int) -> bytes:
    sign, whole = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    seconds, fraction = divmod(whole, _SECOND)
    text = f"{sign}{seconds}.{fraction:09d}".rstrip("0").rstrip(".")
    return text.encode()
