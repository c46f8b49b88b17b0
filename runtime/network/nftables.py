"""The builtin network's rules: one nftables table of the family inet, written as a whole.

The rules never change while pods come and go. What changes are four maps (nft_table.py):

    ports4_at   host address . protocol . port : pod address . port      a port of one address of the host
    ports4      protocol . port : pod address . port                     a port of all of them
    ports6_at, ports6                                                    the same for IPv6

Nothing outside the table is read or written, so Docker's, kube-proxy's and firewalld's rules stay as they
are.
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from proto.errors import Code, CrispError, invalid
from runtime.network.config import Network, NetworkConfig
from runtime.network.leases import POD_GROUP, Lease

Address = IPv4Address | IPv6Address

NFT_SECONDS: Final = 30.0
"""How long the nft program may take to load the table."""

PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": 132}
MAPS: Final = ("ports4_at", "ports4", "ports6_at", "ports6")


@dataclass(frozen=True, slots=True)
class HostPort:
    """One element of one of the maps."""

    address: Address | None
    """None: all of the host's addresses of the target's family."""
    protocol: str
    port: int
    target: Address
    target_port: int

    @property
    def map(self) -> str:
        """The name of the map it belongs to."""
        return f"ports{self.target.version}{'_at' if self.address else ''}"

    @property
    def claim(self) -> tuple[str, Address | None, str, int]:
        """What can be mapped once only."""
        return self.map, self.address, self.protocol, self.port

    def key(self) -> bytes:
        """The map's key: the parts one after the other, each padded to 4 bytes."""
        address = self.address.packed if self.address else b""
        return address + struct.pack("=B3x", PROTOCOLS[self.protocol]) + struct.pack("!H2x", self.port)

    def data(self) -> bytes:
        """The map's value."""
        return self.target.packed + struct.pack("!H2x", self.target_port)

    def __str__(self) -> str:
        """As nft writes an element."""
        at = f"{self.address} . " if self.address else ""
        return f"{at}{self.protocol} . {self.port} : {self.target} . {self.target_port}"


def host_ports(lease: Lease) -> list[HostPort]:
    """The map elements of a lease. Raises INVALID_ARGUMENT for a mapping that cannot be.

    The same port on "" and on "0.0.0.0" is two mappings for a kubelet, of which the first holds where they meet.
    """
    targets = {ip.version: ip for ip in lease.ips}
    elements: dict[tuple[str, Address | None, str, int], HostPort] = {}
    asked: set[tuple[str, str, int]] = set()
    for port in lease.ports:
        if port.host_port == 0:
            continue
        if (port.host_ip, port.protocol, port.host_port) in asked:
            raise invalid("the pod asks for the same host port twice")
        asked.add((port.host_ip, port.protocol, port.host_port))
        if port.protocol not in PROTOCOLS:
            raise invalid(f"host port {port.host_port}: unknown protocol {port.protocol}")
        if not (0 < port.host_port < 65536 and 0 < port.container_port < 65536):
            raise invalid(f"port mapping {port.host_port} to {port.container_port}: ports are 1 to 65535")
        address, families = _bound(port.host_ip)
        reachable = [targets[family] for family in families if family in targets]
        if not reachable:
            raise invalid(f"host port {port.host_port} on {port.host_ip}: the pod has no address of that family")
        for ip in reachable:
            element = HostPort(address, port.protocol, port.host_port, ip, port.container_port)
            elements.setdefault(element.claim, element)
    return list(elements.values())


def _bound(host_ip: str) -> tuple[Address | None, tuple[int, ...]]:
    """The address a mapping is bound to, None for all, and the families it concerns."""
    if not host_ip:
        return None, (4, 6)
    try:
        address = ip_address(host_ip)
    except ValueError:
        raise invalid(f'host IP "{host_ip}" is not an address') from None
    return (None if address.is_unspecified else address), (address.version,)


def ruleset(config: NetworkConfig, networks: Iterable[Network], ports: Iterable[HostPort]) -> str:
    """The whole table as an nft script that puts it in place of an earlier one in a single transaction."""
    members: dict[str, list[str]] = {name: [] for name in MAPS}
    for port in ports:
        members[port.map].append(str(port))
    maps = [
        _map(
            "ports4_at",
            "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
            members["ports4_at"],
        ),
        _map("ports4", "inet_proto . inet_service : ipv4_addr . inet_service", members["ports4"]),
        _map(
            "ports6_at",
            "ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service",
            members["ports6_at"],
        ),
        _map("ports6", "inet_proto . inet_service : ipv6_addr . inet_service", members["ports6"]),
    ]
    lines = [line for network in networks for line in _masquerade(config, network)]
    postrouting = "\n".join(f"        {line}" for line in lines)
    # Before connection tracking: a reply to 127.0.0.1 does not carry that address yet, so what does is
    # forged. Without this, route_localnet on the bridge would let pods reach the host's loopback services
    # (CVE-2020-8558). A neighbour on the uplink that routes 127/8 to the node is sent to no host port either: who
    # binds one to 127.0.0.1 means the node itself.
    # IPv6 has no route_localnet: what the node sends to ::1 cannot go to a pod, so it is refused at once, and clients
    # that try all addresses of "localhost" go on to 127.0.0.1.
    return f"""\
table inet {config.table} {{}}
delete table inet {config.table}
table inet {config.table} {{
{"".join(maps)}
    chain guard {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{config.bridge}" ip daddr 127.0.0.0/8 drop
    }}
    chain ports {{
        dnat ip to ip daddr . meta l4proto . th dport map @ports4_at
        fib daddr type local meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports4
        dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6_at
        fib daddr type local meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @ports6
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname != "lo" ip daddr 127.0.0.0/8 return
        iifname != "lo" ip6 daddr ::1 return
        meta l4proto {{ tcp, udp, sctp }} jump ports
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        ip6 daddr ::1 return
        meta l4proto {{ tcp, udp, sctp }} jump ports
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
{postrouting}
    }}
{_isolation(config) if config.isolated else ""}}}
"""


def _map(name: str, kind: str, elements: list[str]) -> str:
    body = f"        elements = {{ {', '.join(elements)} }}\n" if elements else ""
    return f"    map {name} {{\n        type {kind}\n{body}    }}\n"


def _masquerade(config: NetworkConfig, network: Network) -> list[str]:
    ip = "ip" if network.version == 4 else "ip6"
    here, direct = (
        f'"{config.bridge}"',
        [str(n) for n in config.direct_networks() if n.version == network.version],
    )
    multicast = "224.0.0.0/4" if network.version == 4 else "ff00::/8"
    lines = [
        # A pod that comes back to a pod through a host port: without this the answer would take the short way
        # across the bridge and not be translated back.
        f"oifname {here} ct status dnat {ip} saddr {network} masquerade",
    ]
    if network.version == 4:
        # The node itself through 127.0.0.1, an address that a pod cannot answer.
        lines.append(f"oifname {here} ct status dnat ip saddr 127.0.0.0/8 masquerade")
    unchanged = ", ".join([str(network), multicast, *direct])
    lines.append(f"oifname != {here} {ip} saddr {network} {ip} daddr != {{ {unchanged} }} masquerade fully-random")
    return lines


def _isolation(config: NetworkConfig) -> str:
    return f"""\
    chain forward {{
        type filter hook forward priority filter; policy accept;
        ct state established,related accept
        ct status dnat accept
        oifname "{config.bridge}" iifname != "{config.bridge}" meta iifkind "bridge" drop
    }}
"""


def hush(config: NetworkConfig) -> str:
    """A second table, of the family bridge, that keeps the multicast listener reports which every new pod
    sends for its IPv6 addresses away from all other pods. They are of use to nobody, since the bridge does
    not snoop, and passing each of them on to 500 pods would double the time it takes to connect the next
    one."""
    return f"""\
table bridge {config.table} {{}}
delete table bridge {config.table}
table bridge {config.table} {{
    chain prerouting {{
        type filter hook prerouting priority -300; policy accept;
        iifgroup {POD_GROUP} icmpv6 type mld2-listener-report drop
    }}
}}
"""


def load(script: str) -> None:
    """Run an nft script in one transaction. Raises FAILED_PRECONDITION with nft's own words."""
    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=script, capture_output=True, text=True, timeout=NFT_SECONDS, check=False
        )
    except FileNotFoundError:
        raise CrispError(Code.FAILED_PRECONDITION, "the program nft is missing: install nftables") from None
    except subprocess.TimeoutExpired:
        raise CrispError(Code.UNAVAILABLE, f"nft did not end within {NFT_SECONDS:g} s") from None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()
        raise CrispError(Code.FAILED_PRECONDITION, f"nft refused the pod network's table: {' '.join(reason[:3])}")
