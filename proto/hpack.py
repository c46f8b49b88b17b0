"""HPACK (RFC 7541), the reading half: what a gRPC server says in its headers and trailers. Without I/O.

    Decoder(table)   decode(block) -> [(name, value)], or HeaderError

Written by hand because it is read at the start of every command: the package that reads it for others loads ten times as
long as this takes for a whole call. Writing needs no more than literals, see `literal`.
"""

from __future__ import annotations

from functools import cache
from typing import Final

LONGEST_INTEGER: Final = 1 << 24
"""No length or index of a block that fits into a frame is greater."""

TABLE_BYTES: Final = 4096
"""Of the dynamic table, as long as nobody has said otherwise (RFC 7540, 6.5.2)."""

ENTRY_OVERHEAD: Final = 32
"""RFC 7541, 4.1: each entry counts its name, its value and 32 bytes."""

_STATIC_TEXT: Final = """
:authority|:method GET|:method POST|:path /|:path /index.html|:scheme http|:scheme https|:status 200
:status 204|:status 206|:status 304|:status 400|:status 404|:status 500|accept-charset
accept-encoding gzip, deflate|accept-language|accept-ranges|accept|access-control-allow-origin|age|allow
authorization|cache-control|content-disposition|content-encoding|content-language|content-length
content-location|content-range|content-type|cookie|date|etag|expect|expires|from|host|if-match
if-modified-since|if-none-match|if-range|if-unmodified-since|last-modified|link|location|max-forwards
proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|server|set-cookie
strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate
"""
_STATIC: Final = [
    (name, value)
    for line in _STATIC_TEXT.strip().encode().splitlines()
    for name, _, value in (entry.partition(b" ") for entry in line.split(b"|"))
]
"""Appendix A, from index 1."""

_CODE_LENGTHS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b0806060605050506060606060606"
    "07080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f05060506050606060507070606060506070605"
    "050607070707070f0b0e0d1c14161414161616171617171717171817181816171817171717151617161717181615141616171715171616181516"
    "1717151516151716171714161616171616171a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b1418141516151517"
    "1616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)
"""Appendix B: bits of each byte's code, and of EOS. The code is canonical: of the lengths it follows."""


class HeaderError(Exception):
    """A block that is none; the connection is of no use any more (RFC 7541, 2.2)."""


def literal(name: bytes, value: bytes) -> bytes:
    """A header as a literal that enters no table (6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    return _integer(len(text)) + text


def _integer(value: int) -> bytes:
    """With a prefix of seven bits (5.1), and without Huffman's code."""
    if value < 127:
        return bytes((value,))
    written, rest = bytearray((127,)), value - 127
    while rest >= 128:
        written.append(rest % 128 + 128)
        rest //= 128
    written.append(rest)
    return bytes(written)


class Decoder:
    """Reads the blocks of one connection, one after the other."""

    def __init__(self) -> None:
        self._table: list[tuple[bytes, bytes]] = []
        """The newest first (2.3.2)."""
        self._size = 0
        self._bound = TABLE_BYTES

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """The headers of a whole block. HeaderError if it is none."""
        try:
            return self._decode(block)
        except IndexError:
            raise HeaderError("a block ends early, or names what is in no table") from None

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        found, at = list[tuple[bytes, bytes]](), 0
        while at < len(block):
            first = block[at]
            if first & 0x80:  # indexed (6.1)
                index, at = _read_integer(block, at, 7)
                found.append(self._entry(index))
            elif first & 0xE0 == 0x20:  # the table's size changes (6.3)
                self._bound, at = _read_integer(block, at, 5)
                if self._bound > TABLE_BYTES:
                    raise HeaderError(f"a table of {self._bound} bytes, which nobody has allowed")
                self._evict(0)
            else:  # a literal that enters the table (6.2.1), or does not
                enters = bool(first & 0x40)
                index, at = _read_integer(block, at, 6 if enters else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _read_string(block, at)
                value, at = _read_string(block, at)
                found.append((name, value))
                if enters:
                    self._enter(name, value)
        return found

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if not index:
            raise HeaderError("index 0")
        if index <= len(_STATIC):
            return _STATIC[index - 1]
        return self._table[index - len(_STATIC) - 1]

    def _enter(self, name: bytes, value: bytes) -> None:
        """Make room for it, which one that is greater than the table has not (4.4)."""
        needed = len(name) + len(value) + ENTRY_OVERHEAD
        self._evict(needed)
        if needed <= self._bound:
            self._table.insert(0, (name, value))
            self._size += needed

    def _evict(self, needed: int) -> None:
        while self._table and self._size + needed > self._bound:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + ENTRY_OVERHEAD


def _read_integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    most = (1 << prefix) - 1
    value, at = block[at] & most, at + 1
    if value < most:
        return value, at
    shift = 0
    while True:
        byte, at = block[at], at + 1
        value += (byte & 0x7F) << shift
        if value > LONGEST_INTEGER:
            raise HeaderError("a number without an end")
        if not byte & 0x80:
            return value, at
        shift += 7


def _read_string(block: bytes, at: int) -> tuple[bytes, int]:
    coded = bool(block[at] & 0x80)
    length, at = _read_integer(block, at, 7)
    text = block[at : at + length]
    if len(text) < length:
        raise HeaderError("a block ends early")
    return (_decode_huffman(text) if coded else text), at + length


@cache
def _codes() -> dict[tuple[int, int], int]:
    """By length and code, the byte (256: EOS): of one length they count up with the bytes."""
    codes, code, before = dict[tuple[int, int], int](), 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_CODE_LENGTHS)):
        code <<= length - before
        codes[length, code] = symbol
        code, before = code + 1, length
    return codes


def _decode_huffman(text: bytes) -> bytes:
    codes, decoded = _codes(), bytearray()
    length = code = 0
    for byte in text:
        for bit in range(7, -1, -1):
            length, code = length + 1, code << 1 | byte >> bit & 1
            symbol = codes.get((length, code))
            if symbol is None:
                continue
            if symbol == 256:
                raise HeaderError("a string with its end in its middle")
            decoded.append(symbol)
            length = code = 0
    # 5.2: what is left is the beginning of EOS, all ones, and shorter than a byte.
    if length > 7 or code != (1 << length) - 1:
        raise HeaderError("a string that ends within a character")
    return bytes(decoded)
