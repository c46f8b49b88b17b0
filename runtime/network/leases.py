"""Which sandbox has which addresses, links and host ports.

A lease is stored before anything of it exists in the kernel, and removed after everything of it is gone. So
whatever a crash leaves in the kernel has a lease that names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, Self

from proto.errors import Code, CrispError
from runtime.network.seam import PortMapping

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LINK_ID_DIGITS: Final = 11
"""Hex digits of a sandbox id in a link's name: with two letters before them they fit the kernel's 15
characters."""


POD_GROUP: Final = 0x6372
"""The link group of the bridge's ports that lead to pods, and of what shapes them."""

SMALLEST_REMOVAL_GROUP: Final = 0x10000
"""Links that are being deleted are in groups from here on; those below are what administrators name in
/etc/iproute2/group."""

_LINK_NAME: Final = re.compile(r"c[ri][0-9a-f]{11}")


def bears_mark(name: str, kind: str, group: int) -> bool:
    """Whether a link is one that crisp has made for a pod, by its name, kind and group. All others are somebody else's,
    whatever they are connected to."""
    ours = group == POD_GROUP or group >= SMALLEST_REMOVAL_GROUP
    return bool(_LINK_NAME.fullmatch(name)) and ours and kind == ("veth" if name[1] == "r" else "ifb")


def veth_name(sandbox_id: str) -> str:
    """The host's end of a sandbox's veth pair."""
    return f"cr{sandbox_id[:LINK_ID_DIGITS]}"


def ifb_name(sandbox_id: str) -> str:
    """The device through which a sandbox's outgoing traffic is shaped."""
    return f"ci{sandbox_id[:LINK_ID_DIGITS]}"


def ifb_of(veth: str) -> str:
    """The shaping device that belongs to a veth of this name."""
    return f"ci{veth[2:]}"


OWN_MAC: Final = "02:c5:"
"""How the addresses of pods and of crisp's bridges begin."""


def host_mac(pod: Address) -> str:
    """A MAC for the host's end of a pod's veth pair: fixed, so that nobody waits for it to settle, and higher than any
    card's, as a bridge without an address of its own takes the lowest of its ports'."""
    return "fe:c5:" + mac_of(pod)[len(OWN_MAC) :]


def mac_of(address: Address) -> str:
    """A MAC that follows from the address, so that neighbours' caches stay right when the address has a new
    owner."""
    return (b"\x02\xc5" + address.packed[-4:]).hex(":")


@dataclass(frozen=True, slots=True)
class Lease:
    """What a sandbox holds of the network."""

    ips: tuple[Address, ...]
    links: tuple[str, ...]
    """Names in the daemon's namespace."""
    ports: tuple[PortMapping, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "ips": [str(ip) for ip in self.ips],
            "links": list(self.links),
            "ports": [asdict(port) for port in self.ports],
        }

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Self:
        """From JSON."""
        return cls(
            ips=tuple(ip_address(ip) for ip in document["ips"]),
            links=tuple(document["links"]),
            ports=tuple(PortMapping(**port) for port in document["ports"]),
        )


class Pool:
    """The addresses of one subnet that pods may have: all but its first (the network), its second (the
    gateway), and IPv4's last (broadcast).

    Addresses are handed out in rising order and start over at the end, so that one is long unused before it
    comes back. Taking one costs the same however many are taken, up to a nearly full subnet.
    """

    def __init__(self, subnet: Network) -> None:
        self.subnet = subnet
        self._base = int(subnet.network_address)
        self._first = 2
        self._end = subnet.num_addresses - (1 if subnet.version == 4 else 0)
        self._next = self._first
        self._taken: set[int] = set()

    @property
    def gateway(self) -> Address:
        """The bridge's address."""
        return self.subnet.network_address + 1

    def take(self) -> Address:
        """A free address. Raises RESOURCE_EXHAUSTED when there is none."""
        if len(self._taken) >= self._end - self._first:
            raise CrispError(
                Code.RESOURCE_EXHAUSTED,
                f"all {len(self._taken)} addresses of pod subnet {self.subnet} are in use: "
                "remove pods, or configure a larger one in network.subnets",
            )
        while self._next in self._taken:
            self._advance()
        offset = self._next
        self._taken.add(offset)
        self._advance()
        return self.subnet.network_address + offset

    def _advance(self) -> None:
        self._next = self._next + 1 if self._next + 1 < self._end else self._first

    def claim(self, address: Address) -> None:
        """Mark an address of an earlier life of the daemon as taken; one of another subnet is none of the
        pool's."""
        if address in self.subnet:
            offset = int(address) - self._base
            self._taken.add(offset)
            if offset >= self._next:
                self._next = offset
                self._advance()

    def free(self, addresses: Iterable[Address]) -> None:
        """Give addresses back; those of other subnets are ignored."""
        for address in addresses:
            if address in self.subnet:
                self._taken.discard(int(address) - self._base)
