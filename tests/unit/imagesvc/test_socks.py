"""Addresses as SOCKS5 has them (RFC 1928, 5)."""

from __future__ import annotations

import pytest

from imagesvc.registry import socks


@pytest.mark.parametrize(
    ("host", "written"),
    [
        ("192.0.2.1", b"\1\xc0\0\2\1"),
        ("[2001:db8::1]", b"\4\x20\1\x0d\xb8" + bytes(11) + b"\1"),
        ("registry.example", b"\3\x10registry.example"),
        ("a" * 255, b"\3\xff" + b"a" * 255),
    ],
)
def test_addresses(host: str, written: bytes) -> None:
    assert socks._address(host) == written


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(OSError, match="too long"):
        socks._address("a" * 256)
