"""What all pods of the builtin network share on the host: the bridge, forwarding, and the nftables table.

`SharedHost.ensure` compares it with what it should be and mends it. All of it runs in the network's netlink thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import glob
import os
from collections.abc import AsyncIterator, Collection, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

import structlog

from proto.errors import Code, CrispError, failed_precondition
from runtime.network import bridge, firewalls, links
from runtime.network.bridge import Bridge
from runtime.network.config import Network, NetworkConfig
from runtime.network.conntrack import forget_udp
from runtime.network.nft_table import ANSWER_SECONDS, Table
from runtime.network.nftables import HostPort, hush, load, ruleset
from runtime.network.sysctls import SYSCTLS, read_sysctl, set_sysctl

if TYPE_CHECKING:
    from pyroute2.iproute.linux import AsyncIPRoute

log = structlog.get_logger(__name__)

CHEAP_SECONDS: Final = 0.25
"""A look at others' chains that takes no longer is made whenever nftables has changed."""

LOOK_SHARE: Final = 30
"""A longer one is not made again before this many times as long: kube-proxy has tens of thousands of chains and changes
them all the time, and pods that start wait for the look's end."""


def usable_networks(config: NetworkConfig) -> tuple[Network, ...]:
    """The configured subnets whose family this kernel has. Raises FAILED_PRECONDITION if that leaves none."""
    networks = tuple(n for n in config.networks() if n.version == 4 or os.path.isdir(f"{SYSCTLS}/ipv6"))
    if not networks:
        raise CrispError(Code.FAILED_PRECONDITION, "network.subnets has IPv6 only, and this kernel has IPv6 switched off")
    return networks


class SharedHost:
    """The shared half of the builtin network."""

    def __init__(self, config: NetworkConfig, networks: Sequence[Network]) -> None:
        self._config = config
        self._networks = networks
        self._ports: set[HostPort] = set()
        """What the table's maps should hold."""
        self.route: AsyncIPRoute = links.open_route()
        self._table = Table(config.table)
        self.bridge = Bridge(config, networks, self.route)
        self._rules: tuple[int, int] | None = None
        """Handle and number of rules of the table that was loaded last."""
        self._generation = 0
        """At which the table was last found complete."""
        self._looked_at = -1
        """The generation of nftables at which its chains were looked at last."""
        self._look_again_at = 0.0
        """When they may be looked at again, by the monotonic clock."""
        self._chains = ""
        """The same of nftables alone, as of its last change."""
        self.obstacle = ""
        """What of the host's own rules keeps pods from the outside world; empty if nothing is known to."""

    async def close(self) -> None:
        """Close the sockets."""
        self.route.close()
        self._table.close()

    def expect(self, ports: Collection[HostPort]) -> None:
        """Before the first `ensure`: these host ports are open already, or should be."""
        self._ports = set(ports)

    async def ensure(self, *, thorough: bool = True) -> None:
        """Make or mend what is missing. If all is well, it costs a few netlink requests and reading a few sysctls; one
        request and two sysctls if not `thorough`, which takes the bridge's state for granted, though not its existence."""
        if thorough or not self.bridge.exists():
            await self.bridge.ensure()
        self._ensure_forwarding()
        await self._ensure_table()
        if thorough:
            await self._look_for_obstacles()

    def _ensure_forwarding(self) -> None:
        for network in self._networks:
            if network.version == 4:
                set_sysctl("ipv4/ip_forward", "1")
            elif read_sysctl("ipv6/conf/all/forwarding") != "1":
                self._keep_router_advertisements()
                set_sysctl("ipv6/conf/all/forwarding", "1")

    @staticmethod
    def _keep_router_advertisements() -> None:
        """With forwarding on, accept_ra=1 means no, and a host would lose its default route when that
        expires; 2 means yes even so."""
        for path in glob.glob(f"{SYSCTLS}/ipv6/conf/*/accept_ra"):
            key = os.path.relpath(path, SYSCTLS)
            if read_sysctl(key) == "1":
                set_sysctl(key, "2")

    async def _ensure_table(self) -> None:
        generation = self._table.generation()
        if self._rules is not None and generation == self._generation:
            return
        if self._rules is not None and await self._is_whole():
            self._generation = generation
            return
        if self._rules is not None:
            log.warning(
                "somebody removed the pod network's nftables rules: loading them again",
                table=self._config.table,
            )
        load(ruleset(self._config, self._networks, self._ports))
        try:
            load(hush(self._config))
        except CrispError as error:
            log.info("new pods' multicast reports reach all pods", reason=error.message)
        self._generation = self._table.generation()
        handle = await self._table.handle()
        if handle is None:
            self._rules = None
            raise CrispError(Code.UNAVAILABLE, f"nftables table {self._config.table} was removed while it was being loaded")
        self._rules = handle, await self._table.rule_count()

    async def _look_for_obstacles(self) -> None:
        """nftables tells when it has changed; the rest is asked for each time."""
        started = monotonic()
        if self._looked_at != self._generation and started >= self._look_again_at:
            self._looked_at = self._generation
            self._chains = await firewalls.obstacle(self._table, self._config, self._networks)
            took = monotonic() - started
            self._look_again_at = started + took * LOOK_SHARE if took > CHEAP_SECONDS else 0.0
        before, self.obstacle = self.obstacle, self._chains
        if not self.obstacle:
            self.obstacle = firewalls.legacy_obstacle(self._config, self._networks) or firewalls.uplink_obstacle(
                self.bridge.uplink, self._networks
            )
        if self.obstacle and self.obstacle != before:
            log.warning(self.obstacle)

    async def _is_whole(self) -> bool:
        handle = await self._table.handle()
        if handle is None or (handle, await self._table.rule_count()) != self._rules:
            return False
        return await self._table.elements() == {(port.map, port.key(), port.data()) for port in self._ports}

    async def add_ports(self, ports: Collection[HostPort]) -> None:
        """Open host ports."""
        await self._table.add(ports)
        self._ports.update(ports)
        await forget_udp(self.route, ports)

    async def remove_ports(self, ports: Collection[HostPort]) -> None:
        """Close host ports, those that are open."""
        opened = self._ports.intersection(ports)
        self._ports -= opened
        try:
            await self._table.remove(opened)
        except links.REFUSED as error:
            if getattr(error, "code", None) != errno.ENOENT:
                self._ports |= opened  # whoever asks again must not be told that there is nothing to close
                raise
            # The table is gone, and with it what was to be closed, or another made it. Where it cannot be made anew, `check`
            # says so, and no pod has to stay for that.
            with contextlib.suppress(CrispError):
                await self._ensure_table()
        await forget_udp(self.route, opened)

    async def destroy(self) -> None:
        """Remove the bridge and the table. Forwarding stays on: others may rely on it by now."""
        await _remove_shared(self.route, self._table, self._config)
        self._rules = None
        self.bridge.index = 0


async def _remove_shared(route: AsyncIPRoute, table: Table, config: NetworkConfig) -> None:
    await bridge.remove(route, config)
    await table.delete()


async def shared_traces(config: NetworkConfig) -> list[str]:
    """What of the bridge, its ports and the table is there, whether a daemon runs or not."""
    found = []
    async with _looking(config) as (route, table):
        found = await bridge.traces(route, config)
        if await table.handle() is not None:
            found.append(f"nftables table inet {config.table}")
    return found


async def remove_shared(config: NetworkConfig) -> None:
    """As `SharedHost.destroy`, where no daemon runs: a network that served before CNI did is not started any more.

    Raises FAILED_PRECONDITION where something is there and this process may not remove it.
    """
    found, may_change = await shared_traces(config), False
    async with _looking(config) as (route, table):
        await table.handle()  # refused at once, where a transaction that is refused is never answered
        await _remove_shared(route, table, config)
        may_change = True
    if found and not may_change:
        raise failed_precondition(f"{found[0]} cannot be removed: CAP_NET_ADMIN is needed to change this host's network")


@contextlib.asynccontextmanager
async def _looking(config: NetworkConfig) -> AsyncIterator[tuple[AsyncIPRoute, Table]]:
    """Sockets for a short look. Where this process may not look, no daemon can have made anything: that is no failure, and
    what is to be done with them ends there.

    Raises UNAVAILABLE where the kernel does not answer.
    """
    route, table = links.open_route(), Table(config.table)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            yield route, table
    except TimeoutError:
        raise CrispError(Code.UNAVAILABLE, f"no answer about this host's network within {ANSWER_SECONDS:g} s") from None
    except links.REFUSED as error:
        if (getattr(error, "code", None) or getattr(error, "errno", None)) not in (errno.EPERM, errno.EPROTONOSUPPORT):
            raise
    finally:
        route.close()
        table.close()
