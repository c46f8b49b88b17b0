"""Long rtnetlink listings, of which little is wanted: read without decoding the rest.

A node has hundreds of pods' links, and may have a hundred thousand routes; what a Status call looks for among them is a few
numbers each. Blocks, in the thread's own network namespace.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from pyroute2.netlink import (
    NETLINK_GET_STRICT_CHK,
    NLM_F_DUMP,
    NLM_F_DUMP_FILTERED,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
)
from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_GETROUTE

from runtime.network.config import Network
from runtime.network.netlink import (
    ANSWER_SECONDS,
    HEADER,
    LINK,
    ROUTE,
    RT_TABLE_MAIN,
    RTEXT_FILTER_SKIP_STATS,
    RTN_UNICAST,
    attributes,
    messages,
    number,
)

IFLA_MASTER, IFLA_EXT_MASK = 10, 29
RTA_DST, RTA_OIF, RTA_MULTIPATH = 1, 4, 9


def port_flags(bridge: int) -> dict[int, int]:
    """Flags of a bridge's ports by their index. Raises OSError."""
    wanted = number(IFLA_MASTER, bridge) + number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    ports = {}
    for flags, message in _dump(RTM_GETLINK, LINK.pack(0, 0, 0, 0, 0) + wanted):
        _, _, index, link_flags, _ = LINK.unpack_from(message)
        # Kernels before 4.20 list everything, and do not say that they have filtered.
        if flags & NLM_F_DUMP_FILTERED or _number(message, LINK.size, IFLA_MASTER) == bridge:
            ports[index] = link_flags
    return ports


@dataclass(frozen=True, slots=True)
class Way:
    """A route of the main table."""

    destination: Network
    link: int
    """Index of the outgoing interface, of several the first; 0 if it has none."""


def ways(family: socket.AddressFamily, lengths: set[int]) -> Iterator[Way]:
    """The main table's routes whose prefix has one of these lengths, in the kernel's order: the preferred default route
    before the others. Raises OSError."""
    everywhere = bytes(4 if family == socket.AF_INET else 16)
    request = ROUTE.pack(int(family), 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
    for _, message in _dump(RTM_GETROUTE, request):
        _, length, _, _, table, _, _, kind, _ = ROUTE.unpack_from(message)
        if length not in lengths or table != RT_TABLE_MAIN or kind != RTN_UNICAST:
            continue
        found = dict(attributes(message, ROUTE.size))
        link = _u32(found.get(RTA_OIF))
        if not link and RTA_MULTIPATH in found:
            link = _u32(found[RTA_MULTIPATH][4:8])
        yield Way(ip_network((found.get(RTA_DST, everywhere), length)), link)


def _number(message: bytes, offset: int, wanted: int) -> int:
    return next((_u32(value) for kind, value in attributes(message, offset) if kind == wanted), 0)


def _u32(value: bytes | None) -> int:
    return int(struct.unpack("=I", value[:4])[0]) if value else 0


def _dump(kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """Flags and payload of each message of an answer."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    with netlink:
        netlink.settimeout(ANSWER_SECONDS)
        try:
            netlink.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)  # so that the kernel filters
        except OSError:  # before 4.20
            pass
        netlink.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
        while True:
            for message in messages(netlink.recv(1 << 18)):
                if message.kind == NLMSG_DONE:
                    return
                if message.kind == NLMSG_ERROR:
                    raise OSError(message.error, os.strerror(message.error))
                yield message.flags, message.payload
