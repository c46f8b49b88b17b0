from __future__ import annotations

from ipaddress import ip_interface

from hypothesis import given
from hypothesis import strategies as st

from runtime.network import netlink, rtnetlink


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40))))
def test_attributes_round_trip(members: list[tuple[int, bytes]]) -> None:
    data = b"".join(netlink.attribute(kind, payload) for kind, payload in members)
    assert len(data) % 4 == 0
    assert list(netlink.attribute_list(data)) == members


@given(st.binary(max_size=200))
def test_garbage_ends_the_list_and_nothing_else(data: bytes) -> None:
    for _, payload in netlink.attribute_list(data):
        assert len(payload) <= len(data)


def test_nested_attributes_are_marked_and_read_without_the_mark() -> None:
    data = netlink.nested(3, netlink.u32(1, 7), netlink.text(2, "x"))
    assert data[:4] == bytes.fromhex("14000380")
    assert netlink.attributes(netlink.attributes(data)[3]) == {1: bytes.fromhex("07000000"), 2: b"x\0"}


def test_an_address_as_iproute2_sends_it() -> None:
    """`strace ip addr add 10.0.0.2/24 broadcast + dev 5`, without the header."""
    message = rtnetlink.add_address(5, ip_interface("10.0.0.2/24"))
    assert message.body == bytes.fromhex(
        "02180000 05000000 08000200 0a000002 08000100 0a000002 08000400 0a0000ff"
    )
    six = rtnetlink.add_address(5, ip_interface("fd00::2/64"))
    assert six.body.endswith(bytes.fromhex("08000800 02000000"))
