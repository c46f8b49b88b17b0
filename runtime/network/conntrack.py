"""What connection tracking remembers of UDP host ports.

A UDP "connection" lasts as long as somebody keeps sending, and its first packet decided where it goes. So when a host
port gets another owner, clients that never paused would go on to the old pod, or, if they began before there was any, to
the node itself.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from typing import TYPE_CHECKING

import structlog
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import AsyncNFCTSocket, NFCTAttrTuple

from runtime.network import links
from runtime.network.nftables import HostPort

if TYPE_CHECKING:
    from pyroute2.iproute.linux import AsyncIPRoute

log = structlog.get_logger(__name__)


async def forget_udp(route: AsyncIPRoute, ports: Collection[HostPort]) -> None:
    """Forget the UDP connections that these host ports, just opened or closed, would decide otherwise.

    The kernel picks them out by port (since Linux 5.8), so this costs the same on a host with a million connections.
    """
    for port in ports:
        if port.protocol != "udp":
            continue
        family = socket.AF_INET if port.target.version == 4 else socket.AF_INET6
        netlink = AsyncNFCTSocket(nfgen_family=family)
        try:
            for connection in await _decided_here(route, netlink, port, family):
                await _forget(netlink, connection)
        except NetlinkError as error:  # a kernel without this interface to connection tracking
            log.warning("UDP clients of a host port may go on to its former pod", port=port.port, reason=links.why(error))
        finally:
            netlink.close()


async def _decided_here(route: AsyncIPRoute, netlink: AsyncNFCTSocket, port: HostPort, family: int) -> list[NFCTAttrTuple]:
    found = []
    wanted = NFCTAttrTuple(family=family, proto=socket.IPPROTO_UDP, dport=port.port)
    async for message in await netlink.dump(tuple_orig=wanted):
        there = NFCTAttrTuple.from_netlink(family, message.get_attr("CTA_TUPLE_ORIG"))
        back = NFCTAttrTuple.from_netlink(family, message.get_attr("CTA_TUPLE_REPLY"))
        if (there.proto, there.dport) != (socket.IPPROTO_UDP, port.port):
            continue
        if port.address is not None and there.daddr != str(port.address):
            continue
        # To the pod, or to the node itself. Whatever else uses this port only passes through.
        if back.saddr == str(port.target) or (back.saddr == there.daddr and await links.is_local(route, there.daddr)):
            found.append(there)
    return found


async def _forget(netlink: AsyncNFCTSocket, connection: NFCTAttrTuple) -> None:
    try:
        await netlink.entry("del", tuple_orig=connection)
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise
