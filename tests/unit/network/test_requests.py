"""Requests to rtnetlink, byte by byte as pyroute2 writes them, and answers of the kernel's."""

from __future__ import annotations

import errno
import struct
from ipaddress import ip_interface

import pytest

from runtime.network import requests
from runtime.network.nft_table import generation_of

PAIR = requests.new_veth(
    "crabc",
    mac="fe:c5:0a:c9:00:02",
    mtu=1500,
    master=2,
    group=0x6372,
    peer="eth0",
    peer_mac="02:c5:0a:c9:00:02",
    peer_netns=3,
)
PAIR_BYTES = (
    "a0000000 1000 0506 01000000 00000000  00000000 00000000 01000000 01000000"
    "0a000300 637261626300 0000  0a000100 fec50ac90002 0000  08000400 dc050000  08001b00 72630000  08000a00 02000000"
    "50001200 09000100 7665746800 000000  40000200 3c000100  00000000 00000000 00000000 00000000"
    "09000300 6574683000 000000  0a000100 02c50ac90002 0000  08000400 dc050000  08001c00 03000000"
)


def sent(request: requests.Request) -> str:
    return requests.encode([request]).hex()


def test_a_pair() -> None:
    assert sent(PAIR) == PAIR_BYTES.replace(" ", "")


def test_a_pair_without_a_bridge() -> None:
    """As the benchmark makes it."""
    names = {"mac": "fe:c5:00:00:00:01", "peer_mac": "02:c5:00:00:00:01"}
    free = requests.new_veth("a", mtu=1500, master=0, group=1, peer="b", peer_netns=3, **names)
    assert "08000a00" not in sent(free)


def test_hairpin() -> None:
    body = "00000000 00000000 00000000 00000000  0a000300 637261626300 0000  10001200 0c000500 05000400 01000000"
    assert sent(requests.set_hairpin("crabc")) == ("3c000000 1000 0500 01000000 00000000" + body).replace(" ", "")


@pytest.mark.parametrize(
    ("interface", "mark", "expected"),
    [
        (
            "10.201.0.2/16",
            0,
            "30000000 1400 0505 01000000 00000000 02100000 02000000 08000100 0ac90002 08000400 0ac9ffff 08000200 0ac90002",
        ),
        (
            "10.201.0.2/31",
            0x63,
            "30000000 1400 0505 01000000 00000000 021f0000 02000000 08000100 0ac90002 08000200 0ac90002 05000b00 63000000",
        ),
        (
            "fd63:7269:7370::2/64",
            0,
            "34000000 1400 0505 01000000 00000000 0a400000 02000000"
            "14000100 fd637269737000000000000000000002 08000800 02000000",
        ),
    ],
)
def test_addresses(interface: str, mark: int, expected: str) -> None:
    assert sent(requests.add_address(2, ip_interface(interface), mark=mark)) == expected.replace(" ", "")


@pytest.mark.parametrize(
    ("gateway", "expected"),
    [
        (
            "10.201.0.1/16",
            "2c000000 1800 0505 01000000 00000000 02000000 fe030001 00000000 08000500 0ac90001 08000400 02000000",
        ),
        (
            "fd63:7269:7370::1/64",
            "38000000 1800 0505 01000000 00000000 0a000000 fe030001 00000000"
            "14000500 fd637269737000000000000000000001 08000400 02000000",
        ),
    ],
)
def test_default_routes(gateway: str, expected: str) -> None:
    assert sent(requests.add_default_route(2, ip_interface(gateway))) == expected.replace(" ", "")


def test_several_are_numbered() -> None:
    both = requests.encode([PAIR, requests.set_hairpin("crabc")])
    (first,) = struct.unpack_from("=I", both)
    assert struct.unpack_from("=I", both, 8) == (1,)
    assert struct.unpack_from("=I", both, first + 8) == (2,)
    assert len(both) % 4 == 0


def answer(code: int, words: bytes = b"") -> bytes:
    text = struct.pack("=HH", 4 + len(words), 1) + words + bytes(-len(words) % 4) if words else b""
    payload = struct.pack("=i", -code) + bytes(16) + text
    flags = 0x100 | (0x200 if words else 0)
    return struct.pack("=IHHII", 16 + len(payload), 2, flags, 1, 0) + payload


def test_answers() -> None:
    datagram = answer(0) + answer(errno.EXFULL) + answer(errno.EINVAL, b"Unknown device type\0") + answer(0)
    first, second, third, last = requests.answers(datagram)
    assert first is None is last
    assert second is not None
    assert (second.code, second.args[-1]) == (errno.EXFULL, "Exchange full")
    assert third is not None
    assert (third.code, third.args[-1]) == (errno.EINVAL, "Unknown device type")


@pytest.mark.parametrize("cut", range(36, len(answer(errno.EINVAL, b"Unknown device type\0"))))
def test_an_answer_that_is_cut_short(cut: int) -> None:
    [refusal] = requests.answers(answer(errno.EINVAL, b"Unknown device type\0")[:cut])
    assert refusal is not None
    assert refusal.code == errno.EINVAL


def test_what_is_no_answer_is_none() -> None:
    assert list(requests.answers(struct.pack("=IHHII", 20, 16, 0, 1, 0) + bytes(4))) == []
    assert list(requests.answers(struct.pack("=IHHII", 0, 2, 0, 1, 0))) == []
    assert list(requests.answers(b"")) == []


def test_generation() -> None:
    reply = bytes.fromhex(
        "30000000 0f0a 0000 01000000 df420000 000000bf 08000100 000000bf 08000200 000042db".replace(" ", "")
    )
    assert generation_of(reply) == 0xBF
    with pytest.raises(PermissionError):
        generation_of(answer(errno.EPERM))
