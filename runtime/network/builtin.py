"""The builtin pod network: one bridge, veth pairs, addresses from a lease table, nftables.

No program runs per pod.

    pod ── eth0 ═ veth ═ cr<id> ── bridge crisp0 (gateway) ── routing ── uplink
                                                 │
                                   nftables: masquerade, host ports

A pod's life:  lease stored → links made → addresses given → host ports opened → … → ports closed → links down: it is
disconnected → links gone → lease removed (departures.py). After a crash anywhere in it the lease names all there can be, and
`sweep` or a repeated `attach` undoes it.

The event loop owns the leases and pools; one thread owns the netlink sockets and does what blocks, in the
order asked.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterable, Sequence
from ipaddress import ip_interface
from typing import Final

import structlog

from proto.errors import EXHAUSTED, Code, CrispError, invalid
from runtime.network import bridge, departures, links, pod_sysctls, requests
from runtime.network.bandwidth import Bandwidth, bandwidth_of
from runtime.network.bridge import MAX_PORTS, gateway_of
from runtime.network.config import NetworkConfig
from runtime.network.departures import Departures
from runtime.network.host import SharedHost, usable_networks
from runtime.network.leases import POD_GROUP, Address, Lease, Pool, host_mac, ifb_name, ifb_of, mac_of, veth_name
from runtime.network.netlink_thread import NetlinkThread
from runtime.network.netns import open_netns, run_in_netns
from runtime.network.nftables import HostPort, host_ports
from runtime.network.seam import NOT_READY, LeaseStore, NetworkRequest, NetworkResult, Readiness
from runtime.network.teardown import LinkRemover

log = structlog.get_logger(__name__)

POD_INTERFACE: Final = "eth0"
FORWARDING_DROPPED: Final = "ForwardingDropped"
LINKS_LOST: Final = "PodLinksLost"
SHOWN: Final = 10
"""Sandboxes that a message names."""


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
        self._thread = NetlinkThread("network")
        self._host = SharedHost(config, self._networks)
        self._remover = LinkRemover()
        self._departures = Departures(self._remover, self._give_back)

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
        self._host.bridge.expected = await self._thread.run(_that_exist(lease.links[0] for lease in self._leases.values()))
        self._host.expect([port for ports in self._ports.values() for port in ports])
        readiness = await self.check()
        if not readiness.ready:
            log.error("the pod network cannot be set up", reason=readiness.message)

    async def close(self) -> None:
        """Let go of threads and sockets."""
        await self._departures.close()
        await self._remover.close()
        await self._thread.run(self._host.close())
        await self._thread.close()

    async def attach(self, request: NetworkRequest) -> NetworkResult:
        """Connect a sandbox: an address of each subnet, a default route of each, its host ports and
        limits."""
        if request.sandbox_id in self._leases:
            await self._undo(request.sandbox_id)
        bandwidth = bandwidth_of(request.annotations)
        pools = self._pools
        if pod_sysctls.concern_ipv6(request.sysctls) and await asyncio.to_thread(pod_sysctls.ipv6_is_off, request):
            pools = [pool for pool in pools if pool.subnet.version == 4]
            if not pools:
                raise invalid("the pod switches IPv6 off by its sysctls, and the pod network has no other subnet")
        lease, ports = await self._lease_when_free(request, bandwidth, pools)
        try:
            await self._store.put(request.sandbox_id, lease.document())
            await self._thread.run(self._connect(request, lease, bandwidth, ports))
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
                "hostInterfaces": [lease.links[0]],
                "mac": mac_of(lease.ips[0]),
                "mtu": self._host.bridge.mtu,
                "gateways": [str(pool.gateway) for pool in pools],
                **lease.document(),
            },
        )

    async def _lease_when_free(
        self, request: NetworkRequest, bandwidth: Bandwidth, pools: Sequence[Pool]
    ) -> tuple[Lease, list[HostPort]]:
        """Reserve what the sandbox gets; while there is none to be had, pods that are going are waited for."""
        deadline = asyncio.get_running_loop().time() + departures.ROOM_SECONDS
        while True:
            try:
                return self._lease(request, bandwidth, pools)
            except CrispError as error:
                if error.code is not Code.RESOURCE_EXHAUSTED or not await self._departures.make_room(deadline):
                    raise

    def _lease(self, request: NetworkRequest, bandwidth: Bandwidth, pools: Sequence[Pool]) -> tuple[Lease, list[HostPort]]:
        """Reserve what the sandbox gets, in memory. Raises FAILED_PRECONDITION if another sandbox has a host
        port."""
        if len(self._leases) + self._host.bridge.foreign_ports >= MAX_PORTS:
            raise CrispError(Code.RESOURCE_EXHAUSTED, self._full())
        links = [veth_name(request.sandbox_id)]
        if bandwidth.egress:
            links.append(ifb_name(request.sandbox_id))
        ips = []
        try:
            for pool in pools:
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

    def _full(self) -> str:
        return f"bridge {self._config.bridge} has {MAX_PORTS} ports, as many as the kernel allows: remove pods"

    def _free(self, ips: Sequence[Address]) -> None:
        for pool in self._pools:
            pool.free(ips)

    def _refuse_taken(self, ports: list[HostPort]) -> None:
        claims = {port.claim for port in ports}
        for sandbox_id, others in self._ports.items():
            for other in others:
                if other.claim in claims:
                    raise CrispError(
                        Code.FAILED_PRECONDITION,
                        f"host port {other.port}/{other.protocol} is in use by sandbox {sandbox_id}",
                    )

    async def _connect(self, request: NetworkRequest, lease: Lease, bandwidth: Bandwidth, ports: Sequence[HostPort]) -> None:
        """The kernel's part of attach."""
        netns = open_netns(request.netns_path)
        try:
            await self._host.ensure(thorough=False)
            with run_in_netns(netns, lambda: _enter_pod(request)) as inside:
                self._make_veth(lease, netns, inside)
            await self._shape(lease, bandwidth)
            await self._host.add_ports(ports)
        except links.REFUSED as error:
            if isinstance(error, OSError) and error.errno in EXHAUSTED:
                raise
            if getattr(error, "code", None) == errno.EXFULL:
                raise CrispError(Code.RESOURCE_EXHAUSTED, self._full()) from error
            raise CrispError(
                Code.INTERNAL, f"cannot connect sandbox {request.sandbox_id} to the pod network: {links.why(error)}"
            ) from error
        finally:
            os.close(netns)

    def _make_veth(self, lease: Lease, netns: int, inside: socket.socket) -> None:
        bridge, primary, veth = self._host.bridge, lease.ips[0], lease.links[0]
        pair = requests.new_veth(
            veth,
            mac=host_mac(primary),
            mtu=bridge.mtu,
            master=bridge.index,
            group=POD_GROUP,
            peer=POD_INTERFACE,
            peer_mac=mac_of(primary),
            peer_netns=netns,
        )
        with requests.netlink_socket() as outside:
            requests.carry_out(outside, [pair])
            requests.carry_out(outside, [requests.set_hairpin(veth)])  # of what was made, and of no other that has its name
        index = links.index_inside(inside.fileno(), POD_INTERFACE)
        links.set_up_inside(inside.fileno(), "lo")
        links.set_up_inside(inside.fileno(), POD_INTERFACE)
        addressing = []
        for ip in lease.ips:
            network = next(network for network in self._networks if network.version == ip.version)
            addressing.append(requests.add_address(index, ip_interface(f"{ip}/{network.prefixlen}")))
            addressing.append(requests.add_default_route(index, gateway_of(network)))
        requests.carry_out(inside, addressing)
        bridge.expected.add(veth)

    async def _shape(self, lease: Lease, bandwidth: Bandwidth) -> None:
        """Limit what the pod receives where the host sends it, and what it sends where the host receives it: in the
        daemon's namespace, out of the pod's reach."""
        if bandwidth.ingress is None and bandwidth.egress is None:
            return
        route = self._host.route
        veth = await links.index_of(route, lease.links[0])
        if shape := bandwidth.ingress:
            await links.limit_rate(route, veth, shape.rate, shape.burst, shape.queue)
        if shape := bandwidth.egress:
            await links.new_ifb(route, lease.links[1], self._host.bridge.mtu, POD_GROUP)
            ifb = await links.index_of(route, lease.links[1])
            await links.limit_rate(route, ifb, shape.rate, shape.burst, shape.queue)
            await links.redirect_received(route, veth, ifb)

    async def detach(self, request: NetworkRequest) -> None:
        """Disconnect a sandbox. Its namespace may be gone: the pod's end goes with the host's.

        When this returns nothing gets in or out of it; its links and its address follow (departures.py).
        """
        await asyncio.shield(self._detach(request.sandbox_id))

    async def _detach(self, sandbox_id: str) -> None:
        lease = self._leases.get(sandbox_id)
        if lease is None or sandbox_id in self._departures:
            return
        if self._departures.full:
            await self._undo(sandbox_id)
            return
        await self._disconnect(sandbox_id, lease)
        self._departures.begin(sandbox_id, lease)

    async def _undo(self, sandbox_id: str) -> None:
        """Disconnect a sandbox and give back all it has."""
        await self._departures.give_up(sandbox_id)
        lease = self._leases.get(sandbox_id)
        if lease is None:
            return
        await self._disconnect(sandbox_id, lease)
        try:
            await self._remover.remove(lease.links)
        except links.REFUSED as error:
            raise _cannot_disconnect(sandbox_id, error) from error
        await self._give_back(sandbox_id, lease)

    async def _give_back(self, sandbox_id: str, lease: Lease) -> None:
        """The lease of links that are gone, and the address."""
        if self._leases.get(sandbox_id) is lease:
            await self._store.delete(sandbox_id)
            if self._leases.pop(sandbox_id, None) is not None:
                self._free(lease.ips)

    async def _disconnect(self, sandbox_id: str, lease: Lease) -> None:
        """Close its ports and take its links down; after an attach that was cancelled and may still have been at it."""
        try:
            await self._thread.run(self._take_down(lease, self._ports.get(sandbox_id, [])))
        except links.REFUSED as error:
            raise _cannot_disconnect(sandbox_id, error) from error
        self._ports.pop(sandbox_id, None)

    async def _take_down(self, lease: Lease, ports: Sequence[HostPort]) -> None:
        self._host.bridge.expected.difference_update(lease.links)
        if ports:
            await self._host.remove_ports(ports)
        for name in lease.links:
            await links.take_down(self._host.route, name)

    async def check(self) -> Readiness:
        """Measure bridge, forwarding and table, and mend them if need be."""
        try:
            await self._thread.run(self._host.ensure())
        except CrispError as error:
            return Readiness(False, NOT_READY, error.message)
        except links.REFUSED as error:
            return Readiness(False, NOT_READY, f"pod network {self._config.bridge}: {links.why(error)}")
        if self._host.obstacle:
            return Readiness(True, FORWARDING_DROPPED, self._host.obstacle)
        if lost := self._host.bridge.lost:
            ids = ", ".join(sorted(name[2:] for name in lost)[:SHOWN])
            return Readiness(True, LINKS_LOST, f"somebody deleted links of {len(lost)} pods, which must be made anew: {ids}")
        if refused := self._host.bridge.refusals:
            ids = ", ".join(sorted(f"{name[2:]} ({reason})" for name, reason in refused.items())[:SHOWN])
            return Readiness(True, LINKS_LOST, f"{len(refused)} pods cannot be connected to their bridge again: {ids}")
        return Readiness(True)

    async def sweep(self, live_sandbox_ids: set[str]) -> None:
        """Undo leases of sandboxes that are no more, and delete ports of the bridge that are of crisp's making and that no
        lease names."""
        for sandbox_id in self._leases.keys() - live_sandbox_ids:
            log.info("removing the network of a sandbox that is no more", sandbox=sandbox_id)
            await self._undo(sandbox_id)
        # All that are left belong to pods that run, so that a link that is not there was deleted while no daemon looked.
        staying = (lease for sandbox_id, lease in self._leases.items() if sandbox_id not in self._departures)
        self._host.bridge.expected.update(lease.links[0] for lease in staying)
        ports = await self._thread.run(bridge.pod_ports(self._host.route, self._host.bridge.index))
        known = {name for lease in self._leases.values() for name in lease.links}
        stray = [link.name for link in ports if link.name not in known]
        if stray:
            log.info("removing links that no sandbox explains", links=stray)
            await self._remover.remove([*stray, *map(ifb_of, stray)])

    async def set_pod_cidrs(self, cidrs: Sequence[str]) -> None:
        """Nothing: its subnets are those of its configuration, on a node that no cluster gives any."""

    async def destroy(self) -> None:
        """Disconnect every sandbox, then remove bridge and table."""
        await self.sweep(set())
        await self._thread.run(self._host.destroy())


async def _that_exist(names: Iterable[str]) -> set[str]:
    """Of links of the daemon's namespace; an earlier daemon may have died before it made them."""
    there = {name for _, name in socket.if_nameindex()}
    return there.intersection(names)


def _cannot_disconnect(sandbox_id: str, error: Exception) -> CrispError:
    exhausted = isinstance(error, OSError) and error.errno in EXHAUSTED
    code = Code.RESOURCE_EXHAUSTED if exhausted else Code.INTERNAL
    return CrispError(code, f"cannot disconnect sandbox {sandbox_id} from the pod network: {links.why(error)}")


def _enter_pod(request: NetworkRequest) -> socket.socket:
    """Inside the pod's namespace: its sysctls, and a socket to go on with."""
    pod_sysctls.prepare(request.sysctls)
    return requests.netlink_socket()
