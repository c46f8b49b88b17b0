"""A host with an uplink to an outside world, and pods; each is a network namespace."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from runtime.network.builtin import BuiltinNetwork
from runtime.network.config import NetworkConfig
from runtime.network.seam import NetworkRequest, PortMapping
from tests.kernel.netlab import Echo, Netns, cable


class MemoryLeases:
    """A lease table that a test can look into."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}

    def items(self) -> list[tuple[str, Any]]:
        return [(key, json.loads(value)) for key, value in self.documents.items()]

    async def put(self, key: str, document: object) -> None:
        self.documents[key] = json.dumps(document)

    async def delete(self, key: str) -> None:
        self.documents.pop(key, None)


class Lab:
    """The host, the world, and a lease table."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.host = stack.enter_context(Netns())
        self.outside = stack.enter_context(Netns())
        cable(self.host, self.outside)
        self.host.sh(
            "ip link set uplink mtu 1400; ip addr add 192.0.2.2/24 dev uplink;"
            "ip addr add 2001:db8::2/64 dev uplink nodad; ip route add default via 192.0.2.1"
        )
        self.outside.sh("ip addr add 192.0.2.1/24 dev uplink; ip addr add 2001:db8::1/64 dev uplink nodad")
        self.leases = MemoryLeases()

    def pod(self) -> Netns:
        return self.stack.enter_context(Netns())

    def serve(self, netns: Netns, port: int, **options: Any) -> None:
        self.stack.enter_context(Echo(netns, port, **options))

    def run(self, body: Callable[[], Awaitable[None]]) -> None:
        """Run a coroutine as the daemon of this host: its threads and programs are in the host's namespace."""
        self.host.run(lambda: asyncio.run(body()))  # type: ignore[arg-type]


@asynccontextmanager
async def builtin(lab: Lab, config: NetworkConfig | None = None, leases: MemoryLeases | None = None) -> Any:
    """The builtin network of this host, served."""
    network = BuiltinNetwork(config or NetworkConfig(), leases or lab.leases)
    try:
        await network.start()
        yield network
    finally:
        await network.close()


def request(netns: Netns, *ports: PortMapping, **options: Any) -> NetworkRequest:
    return NetworkRequest(sandbox_id=secrets.token_hex(32), netns_path=netns.path, port_mappings=ports, **options)


def links(netns: Netns) -> set[str]:
    return {link["ifname"] for link in json.loads(netns.sh("ip -j link"))} - {"lo", "uplink", "ifb0", "ifb1"}
