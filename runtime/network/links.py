"""Links, addresses, routes and traffic shaping, by pyroute2: what the pod network asks of rtnetlink and no pod waits for.

What a pod's start waits for is in `requests`.

Its refusals are `NetlinkError`, which is no OSError: `REFUSED` is what to catch, `why` what to tell.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from typing import Any, Final

from pyroute2.iproute.linux import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from runtime.network.leases import bears_mark
from runtime.network.netlink import IFF_UP, RT_TABLE_MAIN, RTEXT_FILTER_SKIP_STATS, RTN_UNICAST
from runtime.network.netns import open_netns, run_in_netns
from runtime.network.requests import Interface, netlink_socket

Network = IPv4Network | IPv6Network

REFUSED: Final = (OSError, NetlinkError)

LOOPBACK_INDEX: Final = 1
"""The kernel's own choice, in every network namespace."""

IFF_RUNNING: Final = 0x40
RTN_LOCAL: Final = 2
TC_H_INGRESS: Final = 0xFFFF0000
ETH_P_ALL: Final = 0x0003
SIOCGIFINDEX, SIOCGIFMTU, SIOCSIFFLAGS = 0x8933, 0x8921, 0x8914
U32_MAX: Final = 0xFFFFFFFF


def why(error: BaseException) -> str:
    """The kernel's words: its explanation (extended ACK) where it gave one."""
    if isinstance(error, NetlinkError):
        return str(error.args[-1])
    return str(getattr(error, "strerror", None) or error)


def open_route() -> AsyncIPRoute:
    """A socket in the namespace of the thread that uses it first, and for that thread."""
    return AsyncIPRoute(ext_ack=True, strict_check=True)


async def close(route: AsyncIPRoute) -> None:
    """Close a socket; in the thread that it is for."""
    route.close()


def route_of(netlink: socket.socket) -> AsyncIPRoute:
    """The same for a netlink socket that was opened in another namespace."""
    return AsyncIPRoute(fileno=netlink.detach(), ext_ack=True)


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says of one interface."""

    index: int
    name: str
    kind: str
    """veth, bridge, …; empty for hardware."""
    up: bool
    mtu: int
    mac: str
    master: int
    """Index of the bridge it is a port of, or 0."""
    group: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table."""

    destination: Network
    link: int
    """Index of the outgoing interface, 0 if the route has none or several."""


async def find_link(route: AsyncIPRoute, name: str) -> Link | None:
    """Look a link up by name."""
    return await _get_link(route, ifname=name)


async def index_of(route: AsyncIPRoute, name: str) -> int:
    """Index of a link that was just made. Raises NetlinkError, ENODEV."""
    link = await find_link(route, name)
    if link is None:
        raise NetlinkError(errno.ENODEV, f"{name} vanished")
    return link.index


async def _get_link(route: AsyncIPRoute, **which: Any) -> Link | None:
    try:
        [message] = await route.link("get", ext_mask=RTEXT_FILTER_SKIP_STATS, **which)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise
    return _link(message)


def _link(message: Any) -> Link:
    return Link(
        index=message["index"],
        name=message.get("ifname"),
        kind=message.get(("linkinfo", "kind")) or "",
        up=bool(message["flags"] & IFF_UP),
        mtu=message.get("mtu") or 0,
        mac=message.get("address") or "",
        master=message.get("master") or 0,
        group=message.get("group") or 0,
    )


async def ports_of(route: AsyncIPRoute, bridge: int) -> list[Link]:
    """The ports of a bridge."""
    dump = await route.link("dump", master=bridge, ext_mask=RTEXT_FILTER_SKIP_STATS)
    links = [_link(message) async for message in dump]
    # The kernel's filter is a favour: it lists everything for a master of 0, and kernels before 4.20 always do.
    return [link for link in links if link.master == bridge != 0]


async def list_routes(route: AsyncIPRoute, family: socket.AddressFamily) -> list[Route]:
    """The main table's routes in the kernel's order: the preferred default route before the others."""
    routes = []
    async for message in await route.route("dump", family=int(family), table=RT_TABLE_MAIN):
        if message["type"] != RTN_UNICAST or (message.get("table") or message["table"]) != RT_TABLE_MAIN:
            continue
        everywhere = "0.0.0.0" if family == socket.AF_INET else "::"
        destination = ip_network((message.get("dst") or everywhere, message["dst_len"]))
        routes.append(Route(destination, message.get("oif") or 0))
    return routes


async def is_local(route: AsyncIPRoute, address: str) -> bool:
    """Whether an address is this host's own."""
    try:
        return any(message["type"] == RTN_LOCAL for message in await route.route("get", dst=address))
    except NetlinkError:  # no route to it
        return False


async def new_bridge(route: AsyncIPRoute, name: str, mac: str, mtu: int) -> None:
    """Make a bridge, down, that forwards at once when it is up: no spanning tree, and no snooping, which would delay
    multicast (so NDP) of new ports. A fixed `mac`, or it would follow its ports' and change under the pods' neighbour
    caches."""
    await route.link(
        "add",
        kind="bridge",
        ifname=name,
        address=mac,
        mtu=mtu,
        br_forward_delay=0,
        br_stp_state=0,
        br_mcast_snooping=0,
    )


async def new_ifb(route: AsyncIPRoute, name: str, mtu: int, group: int) -> None:
    """Make an intermediate functional block: a device through which incoming traffic is shaped as if it went out."""
    await route.link("add", kind="ifb", ifname=name, mtu=mtu, group=group, state="up")


async def set_up(route: AsyncIPRoute, index: int, *, mtu: int = 0, master: int = 0) -> None:
    """Bring a link up; change its MTU and its bridge too, unless 0."""
    changes = {name: value for name, value in (("mtu", mtu), ("master", master)) if value}
    await route.link("set", index=index, state="up", **changes)


async def set_up_loopback(netns_path: str) -> None:
    """Bring the loopback interface of another namespace up."""
    netns = open_netns(netns_path)
    try:
        async with route_of(run_in_netns(netns, netlink_socket)) as route:
            await set_up(route, LOOPBACK_INDEX)
    finally:
        os.close(netns)


async def take_down(route: AsyncIPRoute, name: str) -> None:
    """Let a pod's link neither send nor receive; success if there is none, or only one of another's making."""
    link = await find_link(route, name)
    if link is None or not bears_mark(link.name, link.kind, link.group):
        return
    try:
        await route.link("set", index=link.index, state="down")
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise


async def delete_link(route: AsyncIPRoute, name: str) -> None:
    """Delete a link; success if there is none."""
    try:
        await route.link("del", ifname=name)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise


async def delete_links(route: AsyncIPRoute, names: list[str], group: int) -> dict[str, Exception]:
    """Delete pods' links in one go, by gathering them in a `group` that nobody else uses; returns what was not, and why.

    Those that are gone do not matter, and those of another's making that only have the name are left alone.
    """
    failures: dict[str, Exception] = {}
    gathered = []
    for name in names:
        try:
            link = await find_link(route, name)
            if link is None or not bears_mark(link.name, link.kind, link.group):
                continue
            await route.link("set", index=link.index, group=group)
            gathered.append(name)
        except REFUSED as error:
            if getattr(error, "code", None) != errno.ENODEV:
                failures[name] = error
    if gathered:
        try:
            await route.link("del", group=group)
        except REFUSED:  # one of them, or the kernel lacks this: each for itself, then
            for name in gathered:
                try:
                    await delete_link(route, name)
                except REFUSED as error:
                    failures[name] = error
    return failures


async def addresses_of(route: AsyncIPRoute, index: int) -> dict[Interface, int]:
    """The addresses of a link, each with its mark or 0."""
    return {
        ip_interface((message.get("local") or message.get("address"), message["prefixlen"])): message.get("proto") or 0
        async for message in await route.addr("dump", index=index)
        if message["index"] == index
    }


async def delete_address(route: AsyncIPRoute, index: int, interface: Interface) -> None:
    """Take an address from a link."""
    await route.addr("del", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen)


async def add_connected_route(route: AsyncIPRoute, index: int, interface: Interface) -> None:
    """The route to its neighbours that an address comes with."""
    family = socket.AF_INET if interface.version == 4 else socket.AF_INET6
    source = {"prefsrc": str(interface.ip), "scope": "link"} if interface.version == 4 else {}
    await route.route("replace", family=int(family), dst=str(interface.network), oif=index, proto="kernel", **source)


async def limit_rate(route: AsyncIPRoute, index: int, rate: int, burst: int, queue: int) -> None:
    """Shape what a link sends to `rate` bytes/s with bursts of `burst` bytes and at most `queue` bytes waiting.

    The token bucket has 32 bits for each; a limit above 34 Gbit/s becomes that.
    """
    await route.tc(
        "replace", "tbf", index, 0x10000, rate=min(rate, U32_MAX), burst=min(burst, U32_MAX), limit=min(queue, U32_MAX)
    )


async def redirect_received(route: AsyncIPRoute, index: int, target: int) -> None:
    """Pass all that a link receives through another device (an ifb) before anything else sees it."""
    await route.tc("add", "ingress", index, TC_H_INGRESS)
    await route.tc(
        "add-filter",
        "u32",
        index,
        parent=TC_H_INGRESS,
        prio=1,
        protocol=ETH_P_ALL,
        target=0,
        keys=["0x0/0x0+0"],
        action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target},
    )


def index_inside(fileno: int, name: str) -> int:
    """Index of a link in the namespace that a socket belongs to. Raises OSError, ENODEV.

    if_nametoindex(3) for another namespace; asking by netlink means decoding all there is to say of the link.
    """
    answer = fcntl.ioctl(fileno, SIOCGIFINDEX, struct.pack("16s24x", name.encode()))
    (index,) = struct.unpack_from("=i", answer, 16)
    return int(index)


def set_up_inside(fileno: int, name: str) -> None:
    """Bring a link up in the namespace that a socket belongs to. Raises OSError, ENODEV."""
    request = struct.pack("16sH14x", name.encode(), IFF_UP | IFF_RUNNING)
    fcntl.ioctl(fileno, SIOCSIFFLAGS, request)


def name_at(index: int) -> str:
    """Name of a link of this thread's namespace, empty if there is none."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


def mtu_at(index: int) -> int:
    """MTU of a link of this thread's namespace, 0 if there is none."""
    try:
        request = struct.pack("16s24x", socket.if_indextoname(index).encode())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
            (mtu,) = struct.unpack_from("=i", fcntl.ioctl(control, SIOCGIFMTU, request), 16)
    except OSError:
        return 0
    return int(mtu)


def exists(name: str, index: int) -> bool:
    """Whether the link of this name in this thread's namespace is still the one with this index."""
    try:
        return socket.if_nametoindex(name) == index
    except OSError:
        return False
