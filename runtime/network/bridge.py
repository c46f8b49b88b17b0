"""The bridge of the builtin network: made if it is not there, taken as it is if an administrator made it, and mended.

A bridge of crisp's own making is known by the beginning of its address. What another made, as `network.bridge` may name it,
gets what pods need and nothing else: the gateways' addresses, marked so that they can be taken away again, and ports.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Final

import structlog

from proto.errors import Code, CrispError
from runtime.network import links, listing, requests
from runtime.network.config import Network, NetworkConfig
from runtime.network.leases import OWN_MAC, bears_mark, mac_of
from runtime.network.links import Link
from runtime.network.netlink import IFF_UP
from runtime.network.requests import Interface, Request
from runtime.network.sysctls import set_sysctl

if TYPE_CHECKING:
    from pyroute2.iproute.linux import AsyncIPRoute

log = structlog.get_logger(__name__)

DEFAULT_MTU: Final = 1500

MOST_MTU: Final = 65535
"""Of a bridge and of a veth; `lo` has one more, and tunnels without a limit may have more."""

LEAST_MTU: Final = {4: 68, 6: 1280}
"""With less the kernel takes the family off an interface, with all its sysctls and addresses."""

ADDRESS_MARK: Final = 0x63
"""Of the addresses that crisp gives a bridge (IFA_PROTO; `ip address` shows it as "proto 99")."""

MAX_PORTS: Final = 1023
"""Of one bridge: the kernel has ten bits for their numbers, and none has the number 0."""

DEFAULT_LIKE: Final = 1
"""Longest prefix of a route that stands for the default route: VPN clients halve it, to win over the real one."""


def gateway_of(network: Network) -> Interface:
    """The bridge's address in a pod subnet."""
    return ip_interface(f"{network.network_address + 1}/{network.prefixlen}")


class Bridge:
    """The bridge and its ports, as they should be."""

    def __init__(self, config: NetworkConfig, networks: Sequence[Network], route: AsyncIPRoute) -> None:
        self._config = config
        self._networks = networks
        self._route = route
        self.index = 0
        self.mtu = DEFAULT_MTU
        self.uplink = ""
        """The interface with the default route."""
        self.expected: set[str] = set()
        """The host's ends of the pods' veth pairs."""
        self.lost: set[str] = set()
        """Those of them that are no more, and with them the pods' ends: they cannot be mended."""
        self.refusals: dict[str, str] = {}
        """Those that are there and off the bridge, and why the kernel does not let them on again."""
        self.foreign_ports = 0
        """Others' ports on it at the last look."""

    def exists(self) -> bool:
        """Whether the bridge is the one that was looked at last."""
        return links.exists(self._config.bridge, self.index)

    async def ensure(self) -> None:
        """Make it, or mend it: state, MTU, addresses, routes to the pods, ports. Raises FAILED_PRECONDITION if its name or
        its subnets are taken."""
        name = self._config.bridge
        link = await links.find_link(self._route, name)
        if link is None:
            await self._refuse_overlap(0)
            if self.index:
                log.warning("somebody removed the pod network's bridge: making it again", bridge=name)
            mac = mac_of(gateway_of(self._networks[0]).ip)
            await links.new_bridge(self._route, name, mac, self._uplink_mtu())
            link = await links.find_link(self._route, name)
        if link is None or link.kind != "bridge":
            raise CrispError(
                Code.FAILED_PRECONDITION,
                f"interface {name} exists and is not a bridge: configure another name in network.bridge",
            )
        await self._mend_link(link)
        await self._mend_addresses(link)
        self.index = link.index
        await self._mend_ports(link)

    async def _mend_link(self, link: Link) -> None:
        mtu = self._uplink_mtu()
        for network in self._networks:
            # Of the bridge alone: net.ipv4.conf.default.forwarding may be 0, and forwarding be on for all that was there.
            set_sysctl(f"ipv{network.version}/conf/{link.name}/forwarding", "1")
        if not is_own(link):
            self.mtu = link.mtu
            if not link.up:
                await links.set_up(self._route, link.index)
            return
        self.mtu = mtu
        for network in self._networks:
            if network.version == 6:
                set_sysctl(f"ipv6/conf/{link.name}/disable_ipv6", "0")
                set_sysctl(f"ipv6/conf/{link.name}/accept_ra", "0")
                # Without a link-local address the kernel asks for no neighbours on behalf of others:
                # detection would hold up what is forwarded to the first pod for two seconds.
                set_sysctl(f"ipv6/conf/{link.name}/accept_dad", "0")
        if not link.up or link.mtu != self.mtu:
            if self.index == link.index:
                log.warning("mending the pod network's bridge", bridge=link.name, up=link.up, mtu=link.mtu)
            await links.set_up(self._route, link.index, mtu=self.mtu)

    async def _mend_addresses(self, link: Link) -> None:
        """Gateways' addresses, and the routes to the pods that come with them and can be lost without them."""
        gateways = [gateway_of(network) for network in self._networks]
        there = await links.addresses_of(self._route, link.index)
        missing = [gateway for gateway in gateways if gateway not in there]
        if missing:
            await self._refuse_overlap(link.index)
            if self.index == link.index:
                log.warning("giving the pod network's bridge its addresses again", bridge=link.name, missing=_texts(missing))
        for gateway in missing:
            _ask(requests.add_address(link.index, gateway, mark=ADDRESS_MARK))
        for gateway in gateways:
            if gateway.version == 4:
                # Lets the node's own 127.0.0.1 reach host ports; the table's chain `guard` keeps pods from
                # abusing it.
                set_sysctl(f"ipv4/conf/{link.name}/route_localnet", "1")
            family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
            routed = listing.ways(family, {gateway.network.prefixlen})
            if not any(way.link == link.index and way.destination == gateway.network for way in routed):
                log.warning("routing the pods' subnet to their bridge again", bridge=link.name, subnet=str(gateway.network))
                await links.add_connected_route(self._route, link.index, gateway)

    async def _mend_ports(self, link: Link) -> None:
        """Connect again what belongs to pods and is off the bridge, or down."""
        ports = listing.port_flags(link.index)
        found = {name: index for name in self.expected if (index := _index(name))}
        self.foreign_ports = len(ports.keys() - set(found.values()))
        off = [name for name, index in found.items() if not ports.get(index, 0) & IFF_UP]
        refusals = {name: reason for name in off if (reason := await self._reconnect(name, found[name], link.index))}
        if mended := sorted(set(off) - refusals.keys()):
            log.warning("connecting pods to their bridge again", bridge=link.name, links=mended)
        if refusals.keys() - self.refusals.keys():
            log.error("pods cannot be connected to their bridge again", bridge=link.name, reasons=refusals)
        self.refusals = refusals
        lost = self.expected - found.keys()
        if lost - self.lost:
            log.error("links of pods were deleted: they are off the network until they are made anew", links=sorted(lost))
        self.lost = lost

    async def _reconnect(self, name: str, index: int, bridge: int) -> str:
        """Why one pod cannot be, empty if it is: somebody may use its link for something else, which is no reason for the
        node not to be ready."""
        try:
            await links.set_up(self._route, index, master=bridge)
            _ask(requests.set_hairpin(name))
        except links.REFUSED as error:
            return links.why(error)
        return ""

    def _uplink_mtu(self) -> int:
        """The MTU of the interface with the default route, so that pods' packets fit it, as far as a bridge can have it and
        the pods' families need it: what is too large for a smaller uplink is then told to the pods by ICMP."""
        least = max(LEAST_MTU[network.version] for network in self._networks)
        for family in (socket.AF_INET, socket.AF_INET6):
            for way in listing.ways(family, {0}):
                if way.link and way.link != self.index and (mtu := links.mtu_at(way.link)):
                    self.uplink = links.name_at(way.link)
                    return min(max(mtu, least), MOST_MTU)
        self.uplink = ""
        return DEFAULT_MTU

    async def _refuse_overlap(self, own: int) -> None:
        """Do not take addresses away from a network that the host already reaches, be it part of the pods' subnet or the
        other way round; `own` is the bridge's index, if it has one."""
        for network in self._networks:
            family = socket.AF_INET if network.version == 4 else socket.AF_INET6
            for route in await links.list_routes(self._route, family):
                theirs = route.destination
                if route.link == own != 0 or theirs.prefixlen <= DEFAULT_LIKE or not theirs.overlaps(network):
                    continue
                if any(_within(theirs, direct) for direct in self._config.direct_networks()):
                    continue  # the cluster's, as the administrator says, of which the pods here are a part
                raise CrispError(
                    Code.FAILED_PRECONDITION,
                    f"pod subnet {network} overlaps the host's route to {theirs}: configure other network.subnets",
                )


def is_own(link: Link) -> bool:
    """Whether crisp made this bridge."""
    return link.kind == "bridge" and link.mac.startswith(OWN_MAC)


async def traces(route: AsyncIPRoute, config: NetworkConfig) -> list[str]:
    """What of crisp's there is on the bridge, and the bridge itself if it is crisp's."""
    bridge = await links.find_link(route, config.bridge)
    if bridge is None or bridge.kind != "bridge":
        return []
    found = [f"interface {port.name}" for port in await pod_ports(route, bridge.index)]
    if is_own(bridge):
        return [*found, f"interface {bridge.name}"]
    addresses = await links.addresses_of(route, bridge.index)
    return found + [f"address {address} of {bridge.name}" for address, mark in addresses.items() if mark == ADDRESS_MARK]


async def pod_ports(route: AsyncIPRoute, bridge: int) -> list[Link]:
    """The ports of a bridge that crisp made; others' are not its business."""
    return [port for port in await links.ports_of(route, bridge) if bears_mark(port.name, port.kind, port.group)]


async def remove(route: AsyncIPRoute, config: NetworkConfig) -> None:
    """Delete the bridge if it is crisp's; of another's, take away what crisp has given it."""
    bridge = await links.find_link(route, config.bridge)
    if bridge is None or bridge.kind != "bridge":
        return
    for port in await pod_ports(route, bridge.index):
        await links.delete_link(route, port.name)
    if is_own(bridge):
        await links.delete_link(route, config.bridge)
        return
    for address, mark in (await links.addresses_of(route, bridge.index)).items():
        if mark == ADDRESS_MARK:
            await links.delete_address(route, bridge.index, address)
            if address.version == 4:
                # Without the table that guards it, it would open the node's loopback to this bridge's neighbours.
                set_sysctl(f"ipv4/conf/{bridge.name}/route_localnet", "0")


def _ask(request: Request) -> None:
    with requests.netlink_socket() as netlink:
        requests.carry_out(netlink, [request])


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _within(part: Network, whole: Network) -> bool:
    return part.version == whole.version and part.prefixlen >= whole.prefixlen and part.overlaps(whole)


def _texts(interfaces: Sequence[Interface]) -> list[str]:
    return [str(interface) for interface in interfaces]
