"""The builtin pod network: one bridge, veth pairs, addresses from a lease table, nftables. No program runs
per pod.

    pod ── eth0 ═ veth ═ cr<id> ── bridge crisp0 (gateway) ── routing ── uplink
                                                 │
                                   nftables: masquerade, host ports

A pod's life:  lease stored → links made → addresses given → host ports opened → … → ports closed → links gone
→ lease removed. After a crash anywhere in it the lease names all there can be, and `sweep` or a repeated
`attach` undoes it.

The event loop owns the leases and pools; one thread owns the netlink sockets and does what blocks, in the
order asked.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_interface
from typing import Final, ParamSpec, TypeVar

import structlog

from proto.errors import Code, CrispError
from runtime.network import rtnetlink
from runtime.network.bandwidth import Bandwidth, bandwidth_of
from runtime.network.config import NetworkConfig
from runtime.network.host import SharedHost, gateway_of, usable_networks
from runtime.network.leases import Address, Lease, Pool, ifb_name, ifb_of, mac_of, veth_name
from runtime.network.netlink import NETLINK_ROUTE, NetlinkError, NetlinkSocket
from runtime.network.netns import open_netns, run_in_netns
from runtime.network.nftables import POD_GROUP, HostPort, host_ports
from runtime.network.seam import LeaseStore, NetworkRequest, NetworkResult, Readiness
from runtime.network.teardown import LinkRemover

log = structlog.get_logger(__name__)

POD_INTERFACE: Final = "eth0"
LOOPBACK_INDEX: Final = 1
"""The kernel's own choice, in every network namespace."""

NOT_READY: Final = "NetworkPluginNotReady"

P = ParamSpec("P")
T = TypeVar("T")


class BuiltinNetwork:
    """A `PodNetwork` that needs nothing but the kernel and the nft program."""

    def __init__(self, config: NetworkConfig, store: LeaseStore) -> None:
        self._config = config
        self._store = store
        self._networks = usable_networks(config)
        self._pools = [Pool(network) for network in self._networks]
        self._leases: dict[str, Lease] = {}
        self._ports: dict[str, list[HostPort]] = {}
        """Map elements by sandbox."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._host = SharedHost(config, self._networks)
        self._remover = LinkRemover()

    async def _blocking(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))

    async def start(self) -> None:
        """Load the leases, then make or mend bridge, forwarding and table.

        A host that does not allow this is a reason not to be ready, which `check` reports until it has changed, and none
        not to start: there are pods without a network of their own.
        """
        for sandbox_id, document in self._store.items():
            lease = Lease.parse(document)
            self._leases[sandbox_id] = lease
            if ports := host_ports(lease):
                self._ports[sandbox_id] = ports
            for ip in lease.ips:
                for pool in self._pools:
                    pool.claim(ip)
        self._host.expect([port for ports in self._ports.values() for port in ports])
        readiness = await self.check()
        if not readiness.ready:
            log.error("the pod network cannot be set up", reason=readiness.message)

    async def close(self) -> None:
        """Let go of threads and sockets."""
        await self._remover.close()
        self._thread.shutdown()
        self._host.close()

    async def attach(self, request: NetworkRequest) -> NetworkResult:
        """Connect a sandbox: an address of each subnet, a default route of each, its host ports and
        limits."""
        if request.sandbox_id in self._leases:
            await self._undo(request.sandbox_id)
        bandwidth = bandwidth_of(request.annotations)
        lease, ports = self._lease(request, bandwidth)
        try:
            await self._store.put(request.sandbox_id, lease.document())
            await self._blocking(self._connect, request, lease, bandwidth, ports)
        except BaseException:
            # The thread may still be at it: the undoing comes after it in the same thread.
            await asyncio.shield(self._undo(request.sandbox_id))
            raise
        return NetworkResult(
            ips=tuple(str(ip) for ip in lease.ips),
            interface=POD_INTERFACE,
            detail={
                "network": "builtin",
                "bridge": self._config.bridge,
                "mac": mac_of(lease.ips[0]),
                "mtu": self._host.mtu,
                "gateways": [str(pool.gateway) for pool in self._pools],
                **lease.document(),
            },
        )

    def _lease(self, request: NetworkRequest, bandwidth: Bandwidth) -> tuple[Lease, list[HostPort]]:
        """Reserve what the sandbox gets, in memory. Raises FAILED_PRECONDITION if another sandbox has a host
        port."""
        links = [veth_name(request.sandbox_id)]
        if bandwidth.egress:
            links.append(ifb_name(request.sandbox_id))
        ips = []
        try:
            for pool in self._pools:
                ips.append(pool.take())
            lease = Lease(tuple(ips), tuple(links), request.port_mappings)
            ports = host_ports(lease)
            self._refuse_taken(ports)
        except BaseException:
            self._free(ips)
            raise
        self._leases[request.sandbox_id] = lease
        if ports:
            self._ports[request.sandbox_id] = ports
        return lease, ports

    def _free(self, ips: Sequence[Address]) -> None:
        for pool in self._pools:
            pool.free(ips)

    def _refuse_taken(self, ports: list[HostPort]) -> None:
        claims = {port.claim for port in ports}
        if len(claims) != len(ports):
            raise CrispError(Code.INVALID_ARGUMENT, "the pod asks for the same host port twice")
        for sandbox_id, others in self._ports.items():
            for other in others:
                if other.claim in claims:
                    raise CrispError(
                        Code.FAILED_PRECONDITION,
                        f"host port {other.port}/{other.protocol} is in use by sandbox {sandbox_id}",
                    )

    def _connect(self, request: NetworkRequest, lease: Lease, bandwidth: Bandwidth, ports: Sequence[HostPort]) -> None:
        """The kernel's part of attach. Blocks."""
        netns = open_netns(request.netns_path)
        try:
            self._host.ensure()
            with run_in_netns(netns, _enter_pod) as inside:
                self._make_veth(request, lease, netns)
                self._configure_pod(inside, lease)
            self._shape(lease, bandwidth)
            self._host.add_ports(ports)
        except OSError as error:
            raise CrispError(
                Code.INTERNAL,
                f"cannot connect sandbox {request.sandbox_id} to the pod network: {error.strerror}",
            ) from error
        finally:
            os.close(netns)

    def _make_veth(self, request: NetworkRequest, lease: Lease, netns: int) -> None:
        host = self._host
        primary = lease.ips[0]
        veth = lease.links[0]
        host.route.request(
            rtnetlink.new_veth(
                veth,
                mac=_host_mac(primary),
                mtu=host.mtu,
                master=host.bridge,
                group=POD_GROUP,
                peer=POD_INTERFACE,
                peer_mac=mac_of(primary),
                peer_netns=netns,
            ),
            rtnetlink.set_hairpin(veth),
        )

    def _configure_pod(self, inside: NetlinkSocket, lease: Lease) -> None:
        link = rtnetlink.find_link(inside, POD_INTERFACE)
        if link is None:
            raise NetlinkError(errno.ENODEV, f"{POD_INTERFACE} vanished from the pod's network namespace")
        messages = [rtnetlink.set_up(LOOPBACK_INDEX), rtnetlink.set_up(link.index)]
        for ip, network in zip(lease.ips, self._networks, strict=True):
            address = ip_interface(f"{ip}/{network.prefixlen}")
            messages.append(rtnetlink.add_address(link.index, address))
            messages.append(rtnetlink.add_default_route(link.index, gateway_of(network)))
        inside.request(*messages)

    def _shape(self, lease: Lease, bandwidth: Bandwidth) -> None:
        """Limit what the pod receives where the host sends it, and what it sends where the host receives it:
        in the daemon's namespace, out of the pod's reach."""
        if bandwidth.ingress is None and bandwidth.egress is None:
            return
        route = self._host.route
        veth = self._index(lease.links[0])
        if shape := bandwidth.ingress:
            route.request(rtnetlink.limit_rate(veth, shape.rate, shape.burst, shape.queue))
        if shape := bandwidth.egress:
            route.request(rtnetlink.new_ifb(lease.links[1], self._host.mtu))
            ifb = self._index(lease.links[1])
            route.request(
                rtnetlink.limit_rate(ifb, shape.rate, shape.burst, shape.queue),
                *rtnetlink.redirect_received(veth, ifb),
            )

    def _index(self, name: str) -> int:
        link = rtnetlink.find_link(self._host.route, name)
        if link is None:
            raise NetlinkError(errno.ENODEV, f"{name} vanished")
        return link.index

    async def detach(self, request: NetworkRequest) -> None:
        """Disconnect a sandbox. Its namespace may be gone: the pod's end goes with the host's."""
        await asyncio.shield(self._undo(request.sandbox_id))

    async def _undo(self, sandbox_id: str) -> None:
        lease = self._leases.get(sandbox_id)
        if lease is None:
            return
        if ports := self._ports.pop(sandbox_id, None):
            await self._blocking(self._host.remove_ports, ports)
        else:
            await self._blocking(lambda: None)  # an attach that was cancelled may still be at it
        await self._remover.remove(lease.links)
        await self._store.delete(sandbox_id)
        if self._leases.pop(sandbox_id, None) is not None:
            self._free(lease.ips)

    async def check(self) -> Readiness:
        """Measure bridge, forwarding and table, and mend them if need be."""
        try:
            await self._blocking(self._host.ensure)
        except CrispError as error:
            return Readiness(False, NOT_READY, error.message)
        except OSError as error:
            return Readiness(False, NOT_READY, f"pod network {self._config.bridge}: {error.strerror}")
        return Readiness(True)

    async def sweep(self, live_sandbox_ids: set[str]) -> None:
        """Undo leases of sandboxes that are no more, and delete ports of the bridge that no lease names."""
        for sandbox_id in self._leases.keys() - live_sandbox_ids:
            log.info("removing the network of a sandbox that is no more", sandbox=sandbox_id)
            await self._undo(sandbox_id)
        ports = await self._blocking(lambda: rtnetlink.list_links(self._host.route, master=self._host.bridge))
        known = {name for lease in self._leases.values() for name in lease.links}
        stray = [link.name for link in ports if link.kind == "veth" and link.name not in known]
        if stray:
            log.info("removing links that no sandbox explains", links=stray)
            await self._remover.remove([*stray, *(ifb_of(name) for name in stray if name.startswith("cr"))])

    async def destroy(self) -> None:
        """Disconnect every sandbox, then remove bridge and table."""
        await self.sweep(set())
        await self._blocking(self._host.destroy)


def _host_mac(pod: Address) -> str:
    """A MAC for the host's end: unlike the pod's, and fixed, so that nobody renames it or waits for it to
    settle."""
    return "06" + mac_of(pod)[2:]


def _enter_pod() -> NetlinkSocket:
    """Inside the pod's namespace: IPv6 on whatever the host's default, no routers but ours, and a socket to
    go on with."""
    for key, value in (("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")):
        try:
            with open(f"/proc/sys/net/ipv6/conf/default/{key}", "w", encoding="ascii") as file:
                file.write(value)
        except FileNotFoundError:  # a kernel without IPv6
            break
    return NetlinkSocket(NETLINK_ROUTE)
