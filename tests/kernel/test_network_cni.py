"""CNI with Debian's plugins and real traffic; each test's host is a network namespace of its own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.network.cni.network import CniNetwork
from runtime.network.config import CniConfig
from runtime.network.seam import NetworkResult, PortMapping
from tests.harness.host import CNI_PLUGINS, needs_cni_plugins
from tests.kernel.netlab import Netns, ask
from tests.kernel.network_lab import Lab, MemoryLeases, links, request

pytestmark = [
    pytest.mark.root,
    needs_cni_plugins,
]


class CniLab(Lab):
    """A host with a configuration directory."""

    def __init__(self, stack: ExitStack, tmp: Path) -> None:
        super().__init__(stack)
        self.tmp = tmp
        self.conf_dir = tmp / "net.d"
        self.conf_dir.mkdir()
        self.config = CniConfig(conf_dir=self.conf_dir, bin_dirs=(CNI_PLUGINS,), plugin_seconds=20)

    def bridge(self, subnet4: str = "10.88.0.0/24", subnet6: str = "fd88::/64", name: str = "cni0") -> dict[str, Any]:
        """The plugin bridge with addresses by host-local."""
        return {
            "type": "bridge",
            "bridge": name,
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "capabilities": {"ipRanges": True, "ips": True},
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.tmp / "ipam"),
                "ranges": [[{"subnet": subnet4}], [{"subnet": subnet6}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }

    def write(self, *plugins: dict[str, Any], file: str = "10-cluster.conflist", **more: Any) -> None:
        document = {"cniVersion": "1.0.0", "name": "cluster", **more, "plugins": plugins}
        draft = self.tmp / "draft"
        draft.write_text(json.dumps(document))
        os.rename(draft, self.conf_dir / file)

    def reserved(self) -> list[str]:
        """Addresses that host-local has given out."""
        names = (path.name for path in (self.tmp / "ipam").glob("*/*"))
        return sorted(name for name in names if name != "lock" and not name.startswith("last_reserved_ip"))


@asynccontextmanager
async def cni(lab: CniLab, leases: MemoryLeases | None = None, config: CniConfig | None = None, **options: Any) -> Any:
    network = CniNetwork(config or lab.config, leases or lab.leases, lab.tmp / "locks", **options)
    try:
        await network.start()
        yield network
    finally:
        await network.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[CniLab]:
    with ExitStack() as stack:
        yield CniLab(stack, tmp_path)


def test_pods_reach_each_other_the_node_and_other_hosts_in_both_families(lab: CniLab) -> None:
    lab.write(lab.bridge(), {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_ignore": "1"}}, {"type": "loopback"})
    a, b = lab.pod(), lab.pod()
    lab.host.sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
    lab.serve(b, 8080)
    lab.serve(lab.host, 9090)
    lab.serve(lab.outside, 80)

    async def body() -> None:
        async with cni(lab) as network:
            assert (await network.check()).ready
            ra: NetworkResult = await network.attach(request(a))
            rb: NetworkResult = await network.attach(request(b))
            assert [len(ra.ips), ra.interface] == [2, "eth0"]
            for mine, theirs in zip(ra.ips, rb.ips, strict=True):
                assert ask(a, theirs, 8080) == mine
            assert ask(a, "10.88.0.1", 9090) == ra.ips[0]
            assert ask(a, "192.0.2.1", 80) == "192.0.2.2"
            assert ask(a, "2001:db8::1", 80) == "2001:db8::2"
            assert a.sh("cat /proc/sys/net/ipv4/conf/eth0/arp_ignore").strip() == "1"
            json.dumps(ra.detail)

    lab.run(body)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_host_ports_by_portmap(lab: CniLab, kind: int) -> None:
    lab.write(lab.bridge(), {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}})
    lab.host.sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
    pod, other = lab.pod(), lab.pod()
    lab.serve(pod, 8080, kind=kind)
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"

    async def body() -> None:
        async with cni(lab) as network:
            mapped = request(pod, PortMapping(protocol, 8080, 80))
            await network.attach(mapped)
            await network.attach(request(other))
            assert ask(lab.outside, "192.0.2.2", 80, kind=kind) == "192.0.2.1"
            assert ask(lab.outside, "2001:db8::2", 80, kind=kind) == "2001:db8::1"
            assert ask(lab.host, "192.0.2.2", 80, kind=kind)
            assert ask(other, "192.0.2.2", 80, kind=kind)
            assert ask(pod, "192.0.2.2", 80, kind=kind), "hairpin"
            await network.detach(mapped)
            with pytest.raises(OSError):
                ask(lab.outside, "192.0.2.2", 80, kind=kind, seconds=0.3)

    lab.run(body)


def test_nothing_is_left_after_detach(lab: CniLab) -> None:
    lab.write(
        lab.bridge(),
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    )
    pod = lab.pod()

    async def body() -> None:
        async with cni(lab) as network:
            limits = {"kubernetes.io/egress-bandwidth": "10M", "kubernetes.io/ingress-bandwidth": "20M"}
            attached = request(pod, PortMapping("udp", 53, 53), annotations=limits)
            await network.attach(attached)
            qdiscs = lab.host.sh("tc qdisc show")
            assert "rate 10Mbit" in qdiscs
            assert "rate 20Mbit" in qdiscs
            assert len(lab.reserved()) == 2
            await network.detach(attached)
            await network.detach(attached)
            assert links(pod) == set()
            assert links(lab.host) == {"cni0"}
            assert lab.reserved() == []
            assert lab.leases.documents == {}
            assert list((lab.tmp / "locks").iterdir()) == []

    lab.run(body)


def test_pods_of_two_hosts_reach_each_other_by_routes(lab: CniLab) -> None:
    near, far = lab.pod(), lab.pod()
    lab.serve(far, 8080)
    for host, subnets, gateways in (
        (lab.host, "10.88.2.0/24 fd88:2::/64", "192.0.2.1 2001:db8::1"),
        (lab.outside, "10.88.1.0/24 fd88:1::/64", "192.0.2.2 2001:db8::2"),
    ):
        host.sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
        for subnet, gateway in zip(subnets.split(), gateways.split(), strict=True):
            host.sh(f"ip route add {subnet} via {gateway}")
    ips: dict[str, tuple[str, ...]] = {}

    def connect(host: Netns, pod: Netns, number: int) -> None:
        """Each host has its own configuration and its own share of the pods' addresses."""

        async def body() -> None:
            async with cni(lab, MemoryLeases()) as network:
                ips[pod.path] = (await network.attach(request(pod))).ips

        bridge = lab.bridge(f"10.88.{number}.0/24", f"fd88:{number}::/64")
        lab.write({**bridge, "ipMasq": False}, name=f"host{number}")
        host.run(lambda: asyncio.run(body()))

    connect(lab.host, near, 1)
    connect(lab.outside, far, 2)
    for mine, theirs in zip(ips[near.path], ips[far.path], strict=True):
        assert ask(near, theirs, 8080) == mine


def test_addresses_that_the_pod_asks_for(lab: CniLab) -> None:
    lab.write(lab.bridge())
    pod = lab.pod()

    async def body() -> None:
        async with cni(lab) as network:
            wanted = {"cni.crisp/ips": "10.88.0.77/24,fd88::77/64"}
            assert (await network.attach(request(pod, annotations=wanted))).ips == ("10.88.0.77", "fd88::77")

    lab.run(body)
