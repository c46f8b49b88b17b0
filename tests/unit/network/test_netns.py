from __future__ import annotations

import pytest

from runtime.network.netns import is_of_interface


@pytest.mark.parametrize(
    ("sysctl", "expected"),
    [
        ("net.ipv4.conf.eth0.arp_ignore", True),
        ("net/ipv4/conf/eth0.100/arp_ignore", True),
        ("net.ipv6.neigh.eth0.gc_stale_time", True),
        ("net.ipv4.conf.all.rp_filter", False),
        ("net.ipv4.conf.default.rp_filter", False),
        ("net.ipv6.conf.lo.disable_ipv6", False),
        ("net.ipv4.ip_forward", False),
        ("kernel.shmmax", False),
    ],
)
def test_sysctls_of_one_interface(sysctl: str, expected: bool) -> None:
    assert is_of_interface(sysctl) is expected
