from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import Code, CrispError
from runtime.network.leases import Lease, Pool, ifb_name, ifb_of, mac_of, veth_name
from runtime.network.seam import PortMapping

SANDBOX = "0123456789abcdef" * 4


def test_names_fit_the_kernel_and_belong_together() -> None:
    assert veth_name(SANDBOX) == "cr0123456789a"
    assert len(veth_name(SANDBOX)) <= 15
    assert ifb_of(veth_name(SANDBOX)) == ifb_name(SANDBOX)


def test_macs_are_local_unicast_and_follow_the_address() -> None:
    assert mac_of(ip_address("10.201.0.2")) == "02:c5:0a:c9:00:02"
    assert mac_of(ip_address("fd00::1:2")) == "02:c5:00:01:00:02"


def test_a_lease_survives_json() -> None:
    lease = Lease(
        (ip_address("10.0.0.2"), ip_address("fd00::2")),
        ("cr1", "ci1"),
        (PortMapping("tcp", 80, 8080, "::1"),),
    )
    assert Lease.parse(json.loads(json.dumps(lease.document()))) == lease


def test_a_pool_spares_network_gateway_and_broadcast() -> None:
    pool = Pool(ip_network("10.0.0.0/29"))
    assert str(pool.gateway) == "10.0.0.1"
    assert [str(pool.take()) for _ in range(5)] == [f"10.0.0.{n}" for n in range(2, 7)]
    with pytest.raises(CrispError, match="all 5 addresses of pod subnet") as caught:
        pool.take()
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


def test_ipv6_has_no_broadcast_address() -> None:
    pool = Pool(ip_network("fd00::/125"))
    assert [str(pool.take()) for _ in range(6)] == [f"fd00::{n}" for n in range(2, 8)]


def test_a_freed_address_comes_back_last() -> None:
    pool = Pool(ip_network("10.0.0.0/29"))
    first = pool.take()
    pool.free([first])
    later = [pool.take() for _ in range(5)]
    assert later[-1] == first


def test_claims_continue_after_the_highest() -> None:
    pool = Pool(ip_network("10.0.0.0/29"))
    pool.claim(ip_address("10.0.0.4"))
    pool.claim(ip_address("10.0.0.3"))
    pool.claim(ip_address("192.168.0.1"))
    assert [str(pool.take()) for _ in range(3)] == ["10.0.0.5", "10.0.0.6", "10.0.0.2"]


@given(st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=80))
def test_no_address_is_given_twice(steps: list[int | None]) -> None:
    """None takes an address; a number frees the one taken at that place."""
    pool = Pool(ip_network("10.0.0.0/28"))
    held: list[object] = []
    for step in steps:
        if step is None:
            if len(held) == 13:
                with pytest.raises(CrispError):
                    pool.take()
            else:
                address = pool.take()
                assert address not in held
                held.append(address)
        elif step < len(held):
            pool.free([held.pop(step)])  # type: ignore[list-item]
