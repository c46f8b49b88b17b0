"""Links, addresses, routes and traffic shaping as netlink messages (linux/if_link.h, if_addr.h, rtnetlink.h,
pkt_sched.h).

Functions named after an effect build the message that asks for it; `find_link`, `list_links` and
`list_routes` ask.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_network
from typing import Final

from runtime.network.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
    string,
    text,
    u8,
    u32,
)

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26
RTM_NEWQDISC: Final = 36
RTM_NEWTFILTER: Final = 44

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_NET_NS_FD = 1, 3, 4, 10, 18, 28
IFLA_GROUP: Final = 27
IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS = 29, 8
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_INFO_PEER: Final = 1
IFLA_BRPORT_MODE: Final = 4
IFLA_BR_FORWARD_DELAY, IFLA_BR_STP_STATE, IFLA_BR_MCAST_SNOOPING = 1, 5, 23
IFF_UP: Final = 1
IFNAMSIZ: Final = 16

IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD: Final = 0x02

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 3, 0, 1

TCA_KIND, TCA_OPTIONS = 1, 2
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6
TCA_U32_SEL, TCA_U32_ACT = 5, 7
TCA_ACT_KIND, TCA_ACT_OPTIONS = 1, 2
TCA_MIRRED_PARMS, TCA_EGRESS_REDIR, TC_ACT_STOLEN, TC_U32_TERMINAL = 2, 1, 4, 1
TC_H_ROOT, TC_H_INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
TC_LINKLAYER_ETHERNET: Final = 1
ETH_P_ALL: Final = 0x0003

_IFINFOMSG: Final = struct.Struct("=BxHiII")
_IFADDRMSG: Final = struct.Struct("=BBBBi")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_TCMSG: Final = struct.Struct("=BxxxiIII")


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says of one interface."""

    index: int
    name: str
    kind: str
    """veth, bridge, …; empty for hardware."""
    up: bool
    mtu: int
    master: int
    """Index of the bridge it is a port of, or 0."""
    address: str


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table."""

    destination: Network
    link: int
    """Index of the outgoing interface, 0 if the route has none or several."""


def mac_bytes(address: str) -> bytes:
    """The six bytes of aa:bb:cc:dd:ee:ff."""
    return bytes.fromhex(address.replace(":", ""))


def _link_header(index: int = 0, *, up: bool = False) -> bytes:
    flags = IFF_UP if up else 0
    return _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, flags, flags)


def new_bridge(name: str, mac: str, mtu: int) -> Message:
    """Make a bridge, down, that forwards at once when it is up: no spanning tree, and no snooping, which
    would delay multicast (so NDP) of new ports. A fixed `mac`, or it would follow its ports' and change under
    the pods' neighbour caches."""
    data = nested(
        IFLA_INFO_DATA,
        u32(IFLA_BR_FORWARD_DELAY, 0),
        u32(IFLA_BR_STP_STATE, 0),
        u8(IFLA_BR_MCAST_SNOOPING, 0),
    )
    body = (
        _link_header()
        + text(IFLA_IFNAME, name)
        + attribute(IFLA_ADDRESS, mac_bytes(mac))
        + u32(IFLA_MTU, mtu)
        + nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"), data)
    )
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def new_veth(
    name: str, *, mac: str, mtu: int, master: int, group: int, peer: str, peer_mac: str, peer_netns: int
) -> Message:
    """Make a veth pair: `name` here, up and a port of `master`; `peer` at once inside `peer_netns` (an fd),
    still down, as the kernel refuses to bring up an end before it knows the other."""
    other = (
        _link_header()
        + text(IFLA_IFNAME, peer)
        + attribute(IFLA_ADDRESS, mac_bytes(peer_mac))
        + u32(IFLA_MTU, mtu)
        + u32(IFLA_NET_NS_FD, peer_netns)
    )
    data = nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, other))
    body = (
        _link_header(up=True)
        + text(IFLA_IFNAME, name)
        + attribute(IFLA_ADDRESS, mac_bytes(mac))
        + u32(IFLA_MTU, mtu)
        + u32(IFLA_MASTER, master)
        + u32(IFLA_GROUP, group)
        + nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "veth"), data)
    )
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def new_ifb(name: str, mtu: int) -> Message:
    """Make an intermediate functional block: a device through which incoming traffic is shaped as if it went
    out."""
    body = (
        _link_header(up=True)
        + text(IFLA_IFNAME, name)
        + u32(IFLA_MTU, mtu)
        + nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "ifb"))
    )
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def set_hairpin(name: str) -> Message:
    """Let a bridge port get back what it sent, as happens with bridge-nf-call-iptables=1 to a pod that
    reaches itself through a service or host port."""
    slave = nested(IFLA_INFO_SLAVE_DATA, u8(IFLA_BRPORT_MODE, 1))
    body = _link_header() + text(IFLA_IFNAME, name) + nested(IFLA_LINKINFO, text(IFLA_INFO_SLAVE_KIND, "bridge"), slave)
    return Message(RTM_NEWLINK, 0, body)


def set_up(index: int, *, mtu: int = 0) -> Message:
    """Bring a link up; change its MTU too, unless 0."""
    return Message(RTM_NEWLINK, 0, _link_header(index, up=True) + (u32(IFLA_MTU, mtu) if mtu else b""))


def delete_link(name: str) -> Message:
    """Delete a link by name; ENODEV if there is none."""
    return Message(RTM_DELLINK, 0, _link_header() + text(IFLA_IFNAME, name))


def set_group(name: str, group: int) -> Message:
    """Put a link into a group."""
    return Message(RTM_NEWLINK, 0, _link_header() + text(IFLA_IFNAME, name) + u32(IFLA_GROUP, group))


def delete_group(group: int) -> Message:
    """Delete all links of a group at once; ENODEV if it has none."""
    return Message(RTM_DELLINK, 0, _link_header() + u32(IFLA_GROUP, group))


def add_address(index: int, interface: Interface) -> Message:
    """Give a link an address, usable at once: no duplicate address detection, since the lease table says it
    is ours."""
    packed = interface.ip.packed
    body = _IFADDRMSG.pack(
        socket.AF_INET if interface.version == 4 else socket.AF_INET6,
        interface.network.prefixlen,
        0,
        0,
        index,
    )
    body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
    if interface.version == 6:
        body += u32(IFA_FLAGS, IFA_F_NODAD)
    elif interface.network.prefixlen < 31:
        body += attribute(IFA_BROADCAST, interface.network.broadcast_address.packed)
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)


def add_default_route(index: int, gateway: Interface) -> Message:
    """Send all other traffic to a gateway on a link."""
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    body = (
        _RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
        + attribute(RTA_GATEWAY, gateway.ip.packed)
        + u32(RTA_OIF, index)
    )
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def limit_rate(index: int, rate: int, burst: int, queue: int) -> Message:
    """Shape what a link sends to `rate` bytes/s with bursts of `burst` bytes and at most `queue` bytes
    waiting."""
    # struct tc_ratespec {u8 cell_log, u8 linklayer, u16 overhead, s16 cell_align, u16 mpu, u32 rate}: with a
    # link layer given the kernel needs no rate table, and with RATE64 and BURST it ignores rate and buffer.
    ratespec = struct.pack("=BBHhHI", 0, TC_LINKLAYER_ETHERNET, 0, 0, 0, min(rate, 0xFFFFFFFF))
    parameters = ratespec + bytes(12) + struct.pack("=III", min(queue, 0xFFFFFFFF), 0, 0)
    options = attribute(TCA_TBF_PARMS, parameters) + u32(TCA_TBF_BURST, min(burst, 0xFFFFFFFF))
    if rate > 0xFFFFFFFF:
        options += attribute(TCA_TBF_RATE64, struct.pack("=Q", rate))
    body = _TCMSG.pack(socket.AF_UNSPEC, index, 0x10000, TC_H_ROOT, 0)
    body += text(TCA_KIND, "tbf") + nested(TCA_OPTIONS, options)
    return Message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, body)


def redirect_received(index: int, target: int) -> list[Message]:
    """Pass all that a link receives through another device (an ifb) before anything else sees it."""
    ingress = _TCMSG.pack(socket.AF_UNSPEC, index, 0xFFFF0000, TC_H_INGRESS, 0) + text(TCA_KIND, "ingress")
    # struct tc_u32_sel {flags, offshift, nkeys, offmask, off, offoff, hoff, hmask}, one key that matches all.
    selector = struct.pack("=BBBxHHhhI", TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + struct.pack("=IIii", 0, 0, 0, 0)
    # struct tc_mirred {index, capab, action, refcnt, bindcnt, eaction, ifindex}
    mirred = struct.pack("=IIiiiiI", 0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, target)
    action = nested(
        1,
        text(TCA_ACT_KIND, "mirred"),
        nested(TCA_ACT_OPTIONS, attribute(TCA_MIRRED_PARMS, mirred)),
    )
    information = (1 << 16) | socket.htons(ETH_P_ALL)  # priority and protocol
    match = (
        _TCMSG.pack(socket.AF_UNSPEC, index, 0, 0xFFFF0000, information)
        + text(TCA_KIND, "u32")
        + nested(TCA_OPTIONS, attribute(TCA_U32_SEL, selector), nested(TCA_U32_ACT, action))
    )
    return [
        Message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, ingress),
        Message(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, match),
    ]


def _decode_link(message: Message) -> Link:
    _family, _type, index, flags, _change = _IFINFOMSG.unpack_from(message.body)
    known = attributes(message.body, _IFINFOMSG.size)
    information = attributes(known.get(IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=string(known.get(IFLA_IFNAME, b"")),
        kind=string(information.get(IFLA_INFO_KIND, b"")),
        up=bool(flags & IFF_UP),
        mtu=struct.unpack("=I", known.get(IFLA_MTU, bytes(4)))[0],
        master=struct.unpack("=I", known.get(IFLA_MASTER, bytes(4)))[0],
        address=known.get(IFLA_ADDRESS, b"").hex(":"),
    )


_NO_STATISTICS: Final = u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)


def find_link(netlink: NetlinkSocket, name: str) -> Link | None:
    """Look a link up by name."""
    return _get_link(netlink, _link_header() + text(IFLA_IFNAME, name) + _NO_STATISTICS)


def link_at(netlink: NetlinkSocket, index: int) -> Link | None:
    """Look a link up by index."""
    return _get_link(netlink, _link_header(index) + _NO_STATISTICS)


def _get_link(netlink: NetlinkSocket, body: bytes) -> Link | None:
    try:
        return _decode_link(netlink.get(Message(RTM_GETLINK, 0, body)))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def list_links(netlink: NetlinkSocket, *, master: int) -> list[Link]:
    """The ports of a bridge."""
    body = _link_header() + u32(IFLA_MASTER, master) + _NO_STATISTICS
    links = [_decode_link(message) for message in netlink.dump(Message(RTM_GETLINK, 0, body))]
    # The kernel's filter is a favour: it lists everything for a master of 0, and kernels before 4.20 always do.
    return [link for link in links if link.master == master != 0]


def list_routes(netlink: NetlinkSocket, family: socket.AddressFamily) -> list[Route]:
    """The main table's routes, default routes among them, in the kernel's order: the preferred default route
    first."""
    request = _RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
    routes = []
    for message in netlink.dump(Message(RTM_GETROUTE, 0, request)):
        _family, length, _source, _tos, table, _protocol, _scope, kind, _flags = _RTMSG.unpack_from(message.body)
        if table != RT_TABLE_MAIN or kind != RTN_UNICAST:
            continue
        known = attributes(message.body, _RTMSG.size)
        destination = known.get(RTA_DST, bytes(4 if family == socket.AF_INET else 16))
        link = struct.unpack("=I", known.get(RTA_OIF, bytes(4)))[0]
        routes.append(Route(ip_network((destination, length)), link))
    return routes
