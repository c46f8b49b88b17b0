"""Header blocks of SPDY/3: name/value pairs.

They are compressed by one zlib context per direction for the whole connection.

    +------------------------------------+
    | Number of Name/Value pairs (int32) |
    +------------------------------------+
    |     Length of name (int32)         |
    |           Name (string)            |
    |     Length of value  (int32)       |
    |          Value   (string)          |
    |           (repeats)                |                              SPDY/3.1, 2.6.10
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

MAX_BLOCK_BYTES: Final = 64 * 1024
"""Of a header block when inflated; the clients known send some hundred bytes."""

# SPDY/3.1, 2.6.10.1: the dictionary is a list of words, each with its length before it, and then some running
# text.
_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200|OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_TEXT: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _prefixed(word: str) -> bytes:
    return struct.pack("!I", len(word)) + word.encode("ascii")


DICTIONARY: Final = b"".join(_prefixed(word.replace("|", " ")) for word in _WORDS.split()) + _TEXT.encode("ascii")


class HeaderError(Exception):
    """A header block that cannot be decoded; the connection's zlib context is lost with it."""


class HeaderEncoder:
    """Compresses header blocks; one per connection."""

    def __init__(self) -> None:
        # Small window and little memory: what is sent fits in them many times over.
        self._deflate = zlib.compressobj(level=6, wbits=11, memLevel=1, zdict=DICTIONARY)

    def encode(self, headers: dict[str, str]) -> bytes:
        """A header block."""
        block = struct.pack("!I", len(headers))
        for name, value in headers.items():
            for part in (name.lower().encode(), value.encode()):
                block += struct.pack("!I", len(part)) + part
        return self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


class HeaderDecoder:
    """Inflates header blocks; one per connection."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)

    def decode(self, data: bytes) -> dict[str, str]:
        """Names in lower case with their values; a repeated name's values stand one after the other, NUL
        between them.

        Raises HeaderError for what is not a header block, or for one above MAX_BLOCK_BYTES.
        """
        try:
            block = self._inflate.decompress(data, MAX_BLOCK_BYTES)
        except zlib.error as error:
            raise HeaderError(f"header block: {error}") from None
        if self._inflate.unconsumed_tail:
            raise HeaderError(f"header block above {MAX_BLOCK_BYTES} bytes")
        return _parse(block)


def _parse(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    count, offset = _number(block, 0)
    for _ in range(count):
        length, offset = _number(block, offset)
        name, offset = _string(block, offset, length)
        length, offset = _number(block, offset)
        value, offset = _string(block, offset, length)
        name = name.lower()
        headers[name] = f"{headers[name]}\0{value}" if name in headers else value
    return headers


def _number(block: bytes, offset: int) -> tuple[int, int]:
    if offset + 4 > len(block):
        raise HeaderError("header block ends in a length")
    return int.from_bytes(block[offset : offset + 4], "big"), offset + 4


def _string(block: bytes, offset: int, length: int) -> tuple[str, int]:
    if offset + length > len(block):
        raise HeaderError("header block ends in a string")
    return block[offset : offset + length].decode("utf-8", "replace"), offset + length
