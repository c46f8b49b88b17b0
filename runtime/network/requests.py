"""The requests to rtnetlink that connect a pod, as bytes: those to one namespace are sent and answered together.

A pod's start waits for them, and the kernel carries each out in less time than a library takes to put it into bytes.
`links` has what nobody waits for.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Interface, IPv6Interface
from typing import NamedTuple

from pyroute2.netlink import (
    NETLINK_EXT_ACK,
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    SOL_NETLINK,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE

from runtime.network.netlink import (
    ANSWER_SECONDS,
    HEADER,
    IFF_UP,
    LINK,
    NETLINK_CAP_ACK,
    NLMSGERR_ATTR_MSG,
    ROUTE,
    RT_TABLE_MAIN,
    RTN_UNICAST,
    Message,
    attribute,
    attributes,
    messages,
    number,
)

Interface = IPv4Interface | IPv6Interface

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLALINKINFO, IFLA_GROUP, IFLA_NET_NS_FD = 1, 3, 4, 10, 18, 27, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_MODE, VETH_INFO_PEER = 1, 2, 5, 4, 1
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS, IFA_PROTO, IFA_F_NODAD = 1, 2, 4, 8, 11, 2
RTA_OIF, RTA_GATEWAY, RTPROT_BOOT, RT_SCOPE_UNIVERSE = 4, 5, 3, 0

_ADDRESS = struct.Struct("=BBBBI")


class Request(NamedTuple):
    """One message, without what only its place among others tells."""

    kind: int
    flags: int
    body: bytes


def new_veth(
    name: str, *, mac: str, mtu: int, master: int, group: int, peer: str, peer_mac: str, peer_netns: int
) -> Request:
    """Make a veth pair: `name` here, up and a port of `master` unless that is 0; `peer` at once inside `peer_netns` (an fd),
    still down, as the kernel refuses to bring up an end before it knows the other."""
    far = LINK.pack(0, 0, 0, 0, 0) + _name(peer) + attribute(IFLA_ADDRESS, _mac(peer_mac)) + number(IFLA_MTU, mtu)
    kind = attribute(IFLA_INFO_KIND, b"veth\0")
    data = attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, far + number(IFLA_NET_NS_FD, peer_netns)))
    near = _name(name) + attribute(IFLA_ADDRESS, _mac(mac)) + number(IFLA_MTU, mtu) + number(IFLA_GROUP, group)
    if master:
        near += number(IFLA_MASTER, master)
    body = LINK.pack(0, 0, 0, IFF_UP, IFF_UP) + near + attribute(IFLALINKINFO, kind + data)
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def set_hairpin(name: str) -> Request:
    """Let a bridge port get back what it sent, as happens with bridge-nf-call-iptables=1 to a pod that reaches itself
    through a service or host port."""
    data = attribute(IFLA_INFO_SLAVE_DATA, attribute(IFLA_BRPORT_MODE, b"\1"))
    # Without a kind: the kernel would look for a module of that name.
    return Request(RTM_NEWLINK, 0, LINK.pack(0, 0, 0, 0, 0) + _name(name) + attribute(IFLALINKINFO, data))


def add_address(index: int, interface: Interface, *, mark: int = 0) -> Request:
    """Give a link an address, usable at once: no duplicate address detection, since the lease table says it is ours.

    `mark` is what it can be found by (IFA_PROTO, since Linux 5.18).
    """
    packed, length = interface.ip.packed, interface.network.prefixlen
    if interface.version == 6:
        head = _ADDRESS.pack(socket.AF_INET6, length, 0, 0, index)
        body = head + attribute(IFA_ADDRESS, packed) + number(IFA_FLAGS, IFA_F_NODAD)
    else:
        body = _ADDRESS.pack(socket.AF_INET, length, 0, 0, index) + attribute(IFA_ADDRESS, packed)
        if length < 31:
            body += attribute(IFA_BROADCAST, interface.network.broadcast_address.packed)
        body += attribute(IFA_LOCAL, packed)
    if mark:
        body += attribute(IFA_PROTO, bytes([mark]))
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)


def add_default_route(index: int, gateway: Interface) -> Request:
    """Send all other traffic to a gateway on a link."""
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    head = ROUTE.pack(int(family), 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    body = head + attribute(RTA_GATEWAY, gateway.ip.packed) + number(RTA_OIF, index)
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


def netlink_socket() -> socket.socket:
    """For requests of this thread's namespace."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def carry_out(netlink: socket.socket, requests: Sequence[Request]) -> None:
    """Have the kernel carry out requests, in their order; the socket has no answer pending. Blocks.

    Raises NetlinkError with the kernel's words for the first one that was refused; those behind it were carried out or
    refused all the same. Raises TimeoutError if an answer is missing.
    """
    for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
        netlink.setsockopt(SOL_NETLINK, option, 1)
    netlink.settimeout(ANSWER_SECONDS)
    netlink.send(encode(requests))
    failure, left = None, len(requests)
    while left:
        for error in answers(netlink.recv(1 << 16)):
            left -= 1
            failure = failure or error
    if failure is not None:
        raise failure


def encode(requests: Sequence[Request]) -> bytes:
    """As one datagram."""
    parts = []
    for sequence, (kind, flags, body) in enumerate(requests, 1):
        parts.append(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, sequence, 0) + body)
    return b"".join(parts)  # a body is of whole words


def answers(datagram: bytes) -> Iterator[NetlinkError | None]:
    """For each request that a datagram answers, why it was refused, or None."""
    for message in messages(datagram):
        if message.kind == NLMSG_ERROR and len(message.payload) >= 4:
            code = message.error
            yield NetlinkError(code, _words(message) or os.strerror(code)) if code else None


def _words(refusal: Message) -> str:
    """What the kernel says of a refusal beside its number; empty if nothing. The request's header comes first."""
    if not refusal.flags & NLM_F_ACK_TLVS:
        return ""
    found = dict(attributes(refusal.payload, 4 + HEADER.size))
    return found.get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")


def _name(name: str) -> bytes:
    return attribute(IFLA_IFNAME, name.encode() + b"\0")


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
