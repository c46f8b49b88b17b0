from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.streaming.spdy_headers import DICTIONARY, MAX_BLOCK_BYTES, HeaderDecoder, HeaderEncoder, HeaderError

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20).map(str.lower)


def test_the_dictionary_is_the_specifications() -> None:
    """The checksum stands in the first bytes of every SPDY/3 header block: 78 xx e3 c6 a7 c2."""
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)
    assert HeaderEncoder().encode({})[2:6] == bytes.fromhex("e3c6a7c2")


@given(st.lists(st.dictionaries(NAMES, st.text(max_size=40), max_size=5), max_size=5))
def test_blocks_round_trip_in_one_context(blocks: list[dict[str, str]]) -> None:
    encoder, decoder = HeaderEncoder(), HeaderDecoder()
    assert [decoder.decode(encoder.encode(block)) for block in blocks] == blocks


def test_names_are_lowered_and_repeated_ones_joined() -> None:
    block = bytes.fromhex("00000002" + "00000001" + "41" + "00000001" + "31" + "00000001" + "61" + "00000001" + "32")
    deflate = zlib.compressobj(zdict=DICTIONARY)
    assert HeaderDecoder().decode(deflate.compress(block) + deflate.flush(zlib.Z_SYNC_FLUSH)) == {"a": "1\0002"}


@pytest.mark.parametrize(
    "block", [b"", b"\0\0", b"\0\0\0\1", b"\0\0\0\1\0\0\0\5ab", b"\xff\xff\xff\xff", b"\0\0\0\1\0\0\0\0"]
)
def test_short_blocks(block: bytes) -> None:
    deflate = zlib.compressobj(zdict=DICTIONARY)
    with pytest.raises(HeaderError):
        HeaderDecoder().decode(deflate.compress(block) + deflate.flush(zlib.Z_SYNC_FLUSH))


def test_a_bomb_is_not_inflated() -> None:
    deflate = zlib.compressobj(zdict=DICTIONARY)
    bomb = deflate.compress(bytes(64 * 1024 * 1024)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(HeaderError, match=f"above {MAX_BLOCK_BYTES} bytes"):
        HeaderDecoder().decode(bomb)


@given(st.binary(max_size=200))
def test_garbage_is_an_error(data: bytes) -> None:
    try:
        HeaderDecoder().decode(data)
    except HeaderError:
        pass
