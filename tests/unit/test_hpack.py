"""HPACK as RFC 7541's own examples have it (appendix C)."""

from __future__ import annotations

import pytest

from proto import hpack
from proto.hpack import Decoder, HeaderError, literal

REQUESTS = (
    ":method GET|:scheme http|:path /|:authority www.example.com",
    ":method GET|:scheme http|:path /|:authority www.example.com|cache-control no-cache",
    ":method GET|:scheme https|:path /index.html|:authority www.example.com|custom-key custom-value",
)
DATE = "date Mon, 21 Oct 2013 20:13:21 GMT"
PLACE = "location https://www.example.com"
RESPONSES = (
    f":status 302|cache-control private|{DATE}|{PLACE}",
    f":status 307|cache-control private|{DATE}|{PLACE}",
    f":status 200|cache-control private|{DATE.replace(':21 GMT', ':22 GMT')}|{PLACE}|content-encoding gzip|"
    "set-cookie foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
)
PLAIN_REQUESTS = (  # C.3
    "828684410f7777772e6578616d706c652e636f6d",
    "828684be58086e6f2d6361636865",
    "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
)
CODED_REQUESTS = (  # C.4
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
)
CODED_RESPONSES = (  # C.6, with a table of 256 bytes
    "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
    "4883640effc1c0bf",
    "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab27"
    "0fb5291f9587316065c003ed4ee5b1063d5007",
)


def headers(text: str) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, _, value in (entry.encode().partition(b" ") for entry in text.split("|"))]


@pytest.mark.parametrize("blocks", [PLAIN_REQUESTS, CODED_REQUESTS])
def test_requests_of_the_specification(blocks: tuple[str, ...]) -> None:
    decoder = Decoder()
    for block, said in zip(blocks, REQUESTS, strict=True):
        assert decoder.decode(bytes.fromhex(block)) == headers(said)


def test_responses_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no longer fits leaves the table."""
    decoder = Decoder()
    assert decoder.decode(bytes.fromhex("3fe101")) == []  # a table of 256 bytes
    for block, said in zip(CODED_RESPONSES, RESPONSES, strict=True):
        assert decoder.decode(bytes.fromhex(block)) == headers(said)


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 300, 5000])
def test_literals_of_any_length_are_read_again(size: int) -> None:
    pairs = [(b"a" * max(1, size), b"\x00\xff" * size), (b"b", b"")]
    decoder = Decoder()
    assert decoder.decode(b"".join(literal(*pair) for pair in pairs)) == pairs
    with pytest.raises(HeaderError):  # and none of them has entered the table
        decoder.decode(b"\xbe")


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xbe",  # an empty table's first
        b"\x3f\xff\xff\x03",  # a greater table than was allowed
        b"\xff\xff\xff\xff\xff\xff\xff",  # a number without an end
        b"\x00\x05a",  # a name that ends early
        b"\x40\x01a",  # no value
        b"\x00\x81\x00\x00",  # padded by more than the beginning of EOS
        b"\x00\x84\xff\xff\xff\xff\x00",  # EOS itself
    ],
)
def test_what_is_no_block(block: bytes) -> None:
    with pytest.raises(HeaderError):
        Decoder().decode(block)


def test_an_entry_that_is_greater_than_the_table_empties_it() -> None:
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x01b")
    assert decoder.decode(b"\xbe") == [(b"a", b"b")]
    large = b"x" * hpack.TABLE_BYTES
    assert decoder.decode(b"\x40\x01c" + literal(b"", large)[2:]) == [(b"c", large)]
    with pytest.raises(HeaderError):
        decoder.decode(b"\xbe")
