from __future__ import annotations

from ipaddress import ip_address

import pytest

from proto.errors import CrispError
from runtime.network.config import NetworkConfig
from runtime.network.leases import Lease
from runtime.network.nftables import HostPort, host_ports, ruleset
from runtime.network.seam import PortMapping

DUAL = (ip_address("10.201.0.2"), ip_address("fd63::2"))


def elements(*ports: PortMapping, ips: tuple[object, ...] = DUAL) -> list[str]:
    return [f"{p.map} {p}" for p in host_ports(Lease(ips, (), ports))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host_ip", "expected"),
    [
        ("", ["ports4 tcp . 80 : 10.201.0.2 . 8080", "ports6 tcp . 80 : fd63::2 . 8080"]),
        ("0.0.0.0", ["ports4 tcp . 80 : 10.201.0.2 . 8080"]),
        ("::", ["ports6 tcp . 80 : fd63::2 . 8080"]),
        ("192.0.2.7", ["ports4_at 192.0.2.7 . tcp . 80 : 10.201.0.2 . 8080"]),
        ("2001:db8::7", ["ports6_at 2001:db8::7 . tcp . 80 : fd63::2 . 8080"]),
    ],
)
def test_host_ip_chooses_map_and_family(host_ip: str, expected: list[str]) -> None:
    assert elements(PortMapping("tcp", 8080, 80, host_ip)) == expected


def test_a_container_port_alone_opens_nothing() -> None:
    assert elements(PortMapping("tcp", 8080, 0)) == []


@pytest.mark.parametrize(
    ("port", "message"),
    [
        (PortMapping("icmp", 1, 2), "unknown protocol icmp"),
        (PortMapping("tcp", 0, 80), "ports are 1 to 65535"),
        (PortMapping("tcp", 1, 65536), "ports are 1 to 65535"),
        (PortMapping("tcp", 1, 2, "localhost"), '"localhost" is not an address'),
    ],
)
def test_bad_mappings(port: PortMapping, message: str) -> None:
    with pytest.raises(CrispError, match=message):
        elements(port)


def test_a_host_ip_of_a_family_that_the_pod_lacks() -> None:
    with pytest.raises(CrispError, match="the pod has no address of that family"):
        elements(PortMapping("tcp", 1, 2, "::1"), ips=DUAL[:1])
    assert elements(PortMapping("tcp", 1, 2), ips=DUAL[:1]) == ["ports4 tcp . 2 : 10.201.0.2 . 1"]


def test_keys_and_values_as_the_kernel_lays_them_out() -> None:
    port = HostPort(ip_address("192.0.2.7"), "tcp", 80, ip_address("10.201.0.2"), 8080)
    assert port.key() == bytes.fromhex("c0000207 06000000 00500000")
    assert port.data() == bytes.fromhex("0ac90002 1f900000")
    everywhere = HostPort(None, "sctp", 1, ip_address("fd63::2"), 2)
    assert everywhere.key() == bytes.fromhex("84000000 00010000")
    assert everywhere.data() == bytes.fromhex("fd63" + "00" * 13 + "02 00020000")


def test_the_script_replaces_its_own_table_only() -> None:
    config = NetworkConfig(table="mine", bridge="br7", subnets=("10.9.0.0/24",), direct=("10.0.0.0/8", "fd00::/8"))
    script = ruleset(config, config.networks(), host_ports(Lease(DUAL[:1], (), (PortMapping("udp", 53, 5353),))))
    assert script.startswith("table inet mine {}\ndelete table inet mine\ntable inet mine {\n")
    assert "elements = { udp . 5353 : 10.201.0.2 . 53 }" in script
    assert 'oifname != "br7" ip saddr 10.9.0.0/24 ip daddr != { 10.9.0.0/24, 224.0.0.0/4, 10.0.0.0/8 }' in script
    assert "ip6 saddr" not in script
    assert "chain forward" not in script
    assert "flush ruleset" not in script
    assert script.count("{") == script.count("}")


def test_isolation_adds_the_forward_chain() -> None:
    config = NetworkConfig(isolated=True)
    script = ruleset(config, config.networks(), [])
    assert 'iifname != "crisp0" meta iifkind "bridge" drop' in script
    assert script.count("{") == script.count("}")
