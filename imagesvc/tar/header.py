"""The fields of a tar header, and what is said of archives that are none."""

from __future__ import annotations

import functools
import struct
import zlib

_BLANK_CHECKSUM = sum(b" " * 8)
_ADLER = 65521


class TarError(Exception):
    """The bytes are no tar archive, or pass a limit."""


def check(block: bytes) -> int:
    """Checks a header's checksum and returns its size field."""
    # Adler-32's low half is 1 + the sum of the bytes, modulo 65521: the fastest sum that Python has.
    own = block[148:156]
    low = (zlib.adler32(block) & 0xFFFF) - (zlib.adler32(own) & 0xFFFF) + _BLANK_CHECKSUM
    if (low - number(own)) % _ADLER and _signed_sum(block) != number(own):
        raise TarError("a header's checksum is wrong: this is no tar archive, or it is damaged")
    size = _parse_number(block[124:136])
    if size < 0:
        raise TarError("an entry has a negative size")
    return size


def _signed_sum(block: bytes) -> int:
    """Some old writers summed signed characters."""
    signed: tuple[int, ...] = struct.unpack("512b", block)
    return sum(signed[:148]) + _BLANK_CHECKSUM + sum(signed[156:])


def _parse_number(field: bytes) -> int:
    """Octal text, or GNU's base-256 where the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        return value
    text = field.strip(b" \0").partition(b"\0")[0]
    if text.translate(None, b"01234567"):  # int() takes signs, `_` and `0o` too
        raise TarError(f"a header has {text!r} where an octal number belongs")
    return int(text, 8) if text else 0


number = functools.lru_cache(2048)(_parse_number)
"""The same for what is the same in many headers."""


def prefix(block: bytes, magic: bytes, prefix: bytes) -> bytes:
    """What stands before the name. Star's field is shorter; in GNU's headers other things are there (atime, ctime), and if
    they are none it is a name all the same, as old versions of Go wrote it."""
    if magic[:6] == b"ustar\0":
        return (prefix[:131] if block[508:] == b"tar\0" else prefix).partition(b"\0")[0]
    if magic != b"ustar  \0":
        return b""
    try:
        for time in (prefix[:12], prefix[12:24]):
            number(time if time[0] else b"0")
    except TarError:
        text = prefix.partition(b"\0")[0]
        return text if text.isascii() else b""
    return b""
