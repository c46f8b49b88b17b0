"""The [network] section of the configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from proto.errors import invalid

Network = IPv4Network | IPv6Network

MAX_BRIDGE_NAME: Final = 15
"""Bytes; the kernel's IFNAMSIZ less its NUL."""

SMALLEST_PREFIX: Final = {4: 29, 6: 125}
"""Longest prefix of a pod subnet that still has room for the gateway and a few pods."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The builtin pod network. Two daemons on one host need a bridge, a table and subnets of their own
    each."""

    bridge: str = "crisp0"
    """Interface name; the gateway of all pods."""
    table: str = "crisp"
    """nftables table of the family inet; nothing outside it is touched."""
    subnets: tuple[str, ...] = ("10.201.0.0/16", "fd63:7269:7370::/64")
    """At most one per family; pods get an address of each, and the first family's is their primary one. The
    subnet's first address is the bridge's."""
    direct: tuple[str, ...] = ()
    """Networks that pods reach with their own address, without masquerade: they must have routes back."""
    isolated: bool = False
    """Refuse connections that other bridges' containers open to this network's pods."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.bridge) or len(self.bridge) > MAX_BRIDGE_NAME:
            raise invalid(f"bridge: {self.bridge!r} is no interface name of at most {MAX_BRIDGE_NAME} characters")
        if not _NAME.fullmatch(self.table):
            raise invalid(f"table: {self.table!r} is no nftables table name")
        families = [network.version for network in self.networks()]
        if not families or len(families) != len(set(families)):
            raise invalid("subnets: one IPv4 network, one IPv6 network, or one of each")
        for network in self.networks():
            if network.prefixlen > SMALLEST_PREFIX[network.version]:
                raise invalid(f"subnets: {network} is too small, at least a /{SMALLEST_PREFIX[network.version]}")
        self.direct_networks()

    def networks(self) -> tuple[Network, ...]:
        """The pod subnets."""
        return tuple(_network("subnets", value) for value in self.subnets)

    def direct_networks(self) -> tuple[Network, ...]:
        """The networks reached without masquerade."""
        return tuple(_network("direct", value) for value in self.direct)


def _network(key: str, value: str) -> Network:
    try:
        return ip_network(value)
    except ValueError as error:
        raise invalid(f"{key}: {error}") from None
