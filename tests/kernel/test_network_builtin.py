"""The builtin network with real traffic; each test's host is a network namespace of its own."""

from __future__ import annotations

import asyncio
import errno
import json
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from proto.errors import Code, CrispError
from runtime.network.config import NetworkConfig
from runtime.network.leases import ifb_name, veth_name
from runtime.network.nft_table import Table
from runtime.network.seam import NetworkRequest, NetworkResult, PortMapping
from tests.harness.waiting import until
from tests.kernel.netlab import Netns, ask, family_of
from tests.kernel.network_lab import Lab, MemoryLeases, builtin, links, request

pytestmark = pytest.mark.root

CONFIG = NetworkConfig()
OTHER = NetworkConfig(bridge="crisp1", table="crisp1", subnets=("10.202.0.0/24", "fd63:7269:7371::/64"))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(stack)


def test_pods_reach_each_other_and_the_node_in_both_families(lab: Lab) -> None:
    a, b = lab.pod(), lab.pod()
    lab.serve(b, 8080)
    lab.serve(lab.host, 9090)

    async def body() -> None:
        async with builtin(lab) as network:
            ra: NetworkResult = await network.attach(request(a))
            rb: NetworkResult = await network.attach(request(b))
            assert [len(ra.ips), ra.interface] == [2, "eth0"]
            assert set(ra.ips).isdisjoint(rb.ips)
            for mine, theirs in zip(ra.ips, rb.ips, strict=True):
                assert ask(a, theirs, 8080) == mine
                assert ask(lab.host, theirs, 8080)
            assert ask(a, "10.201.0.1", 9090) == ra.ips[0]
            assert ask(a, "192.0.2.2", 9090) == ra.ips[0]
            assert ask(a, "fd63:7269:7370::1", 9090) == ra.ips[1]
            assert ask(a, "2001:db8::2", 9090) == ra.ips[1]
            assert json.loads(a.sh("ip -j link show eth0"))[0]["mtu"] == 1400
            json.dumps(ra.detail)

    lab.run(body)


def test_traffic_that_leaves_the_host_carries_the_hosts_address(lab: Lab) -> None:
    pod = lab.pod()
    lab.serve(lab.outside, 80)

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(request(pod))
            assert ask(pod, "192.0.2.1", 80) == "192.0.2.2"
            assert ask(pod, "2001:db8::1", 80) == "2001:db8::2"

    lab.run(body)


def test_direct_networks_see_the_pods_address(lab: Lab) -> None:
    pod = lab.pod()
    lab.serve(lab.outside, 80)
    lab.outside.sh("ip route add 10.201.0.0/16 via 192.0.2.2")

    async def body() -> None:
        async with builtin(lab, NetworkConfig(direct=("192.0.2.0/24",))) as network:
            result = await network.attach(request(pod))
            assert ask(pod, "192.0.2.1", 80) == result.ips[0]
            assert ask(pod, "2001:db8::1", 80) == "2001:db8::2"

    lab.run(body)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_host_ports_from_everywhere(lab: Lab, kind: int) -> None:
    pod, other = lab.pod(), lab.pod()
    lab.serve(pod, 8080, kind=kind)
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"

    async def body() -> None:
        async with builtin(lab) as network:
            mapped = request(pod, PortMapping(protocol, 8080, 80))
            await network.attach(mapped)
            await network.attach(request(other))
            assert ask(lab.outside, "192.0.2.2", 80, kind=kind) == "192.0.2.1"
            assert ask(lab.outside, "2001:db8::2", 80, kind=kind) == "2001:db8::1"
            for address in ("127.0.0.1", "192.0.2.2", "2001:db8::2", "10.201.0.1"):
                assert ask(lab.host, address, 80, kind=kind)
            for address in ("192.0.2.2", "2001:db8::2", "10.201.0.1", "fd63:7269:7370::1"):
                assert ask(other, address, 80, kind=kind), f"another pod through {address}"
                assert ask(pod, address, 80, kind=kind), f"hairpin through {address}"
            await network.detach(mapped)
            with pytest.raises(OSError):
                ask(lab.outside, "192.0.2.2", 80, kind=kind, seconds=0.3)

    lab.run(body)


@pytest.mark.parametrize("calls", ["0", "1"])
def test_hairpin_does_not_depend_on_bridge_nf_call(lab: Lab, calls: str) -> None:
    if "bridge" not in lab.host.sh("ls /proc/sys/net").split():
        pytest.skip("this kernel has no br_netfilter")
    for family in ("iptables", "ip6tables"):
        lab.host.sh(f"echo {calls} > /proc/sys/net/bridge/bridge-nf-call-{family}")
    pod, other = lab.pod(), lab.pod()
    lab.serve(pod, 8080)

    async def body() -> None:
        async with builtin(lab) as network:
            result = await network.attach(request(pod, PortMapping("tcp", 8080, 80)))
            await network.attach(request(other))
            for address in ("192.0.2.2", "2001:db8::2"):
                assert ask(pod, address, 80)
                assert ask(other, address, 80)
            assert ask(other, result.ips[0], 8080)

    lab.run(body)


def test_host_ip_limits_a_host_port_to_one_address(lab: Lab) -> None:
    pod = lab.pod()
    lab.serve(pod, 8080)
    lab.host.sh("ip addr add 192.0.2.3/24 dev uplink")

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(
                request(
                    pod,
                    PortMapping("tcp", 8080, 80, "192.0.2.3"),
                    PortMapping("tcp", 8080, 81, "127.0.0.1"),
                    PortMapping("tcp", 8080, 82, "::"),
                    PortMapping("tcp", 8080, 83, "0.0.0.0"),
                )
            )
            assert ask(lab.outside, "192.0.2.3", 80)
            assert ask(lab.host, "127.0.0.1", 81)
            assert ask(lab.outside, "2001:db8::2", 82)
            assert ask(lab.outside, "192.0.2.2", 83)
            for address, port in (
                ("192.0.2.2", 80),
                ("192.0.2.2", 81),
                ("192.0.2.2", 82),
                ("2001:db8::2", 83),
            ):
                with pytest.raises(ConnectionRefusedError):
                    ask(lab.outside, address, port)

    lab.run(body)


def test_a_host_port_of_the_nodes_loopback_is_out_of_the_neighbours_reach(lab: Lab) -> None:
    pod = lab.pod()
    lab.serve(pod, 8080)
    lab.outside.sh(
        "ip addr del 127.0.0.1/8 dev lo; sysctl -qw net.ipv4.conf.uplink.route_localnet=1;"
        "ip route add 127.0.0.0/8 via 192.0.2.2 src 192.0.2.1"
    )
    # As a node has it whose administrator, or kube-proxy, is generous.
    lab.host.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.uplink.rp_filter=0")

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(request(pod, PortMapping("tcp", 8080, 81, "127.0.0.1"), PortMapping("tcp", 8080, 82)))
            assert ask(lab.host, "127.0.0.1", 81)
            assert ask(lab.host, "127.0.0.1", 82)
            assert ask(lab.outside, "192.0.2.2", 82)
            for port in (81, 82):
                with pytest.raises(OSError):
                    ask(lab.outside, "127.0.0.1", port, seconds=0.5)

    lab.run(body)


def test_a_host_port_in_use_is_refused_and_nothing_remains(lab: Lab) -> None:
    first, second = lab.pod(), lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            mapped = request(first, PortMapping("tcp", 1, 80))
            await network.attach(mapped)
            with pytest.raises(CrispError, match=f"80/tcp is in use by sandbox {mapped.sandbox_id}") as caught:
                await network.attach(request(second, PortMapping("tcp", 1, 80)))
            assert caught.value.code is Code.FAILED_PRECONDITION
            assert list(lab.leases.documents) == [mapped.sandbox_id]
            assert links(second) == set()
            await network.detach(mapped)
            await network.attach(request(second, PortMapping("tcp", 1, 80)))

    lab.run(body)


def test_loopback_services_of_the_host_are_out_of_the_pods_reach(lab: Lab) -> None:
    pod = lab.pod()
    lab.serve(lab.host, 9090, bind="127.0.0.1")
    pod.sh("true")

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(request(pod))
            pod.sh(
                "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet; ip addr del 127.0.0.1/8 dev lo;"
                "ip route add 127.0.0.1 via 10.201.0.1; ip route del table local local 127.0.0.0/8 dev lo || true"
            )
            with pytest.raises(OSError):
                ask(pod, "127.0.0.1", 9090, seconds=0.3)

    lab.run(body)


def test_nothing_is_left_after_detach_and_destroy(lab: Lab) -> None:
    before = links(lab.host)
    pod = lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            shaped = request(
                pod,
                PortMapping("udp", 53, 53),
                annotations={
                    "kubernetes.io/egress-bandwidth": "10M",
                    "kubernetes.io/ingress-bandwidth": "20M",
                },
            )
            await network.attach(shaped)
            assert {veth_name(shaped.sandbox_id), ifb_name(shaped.sandbox_id)} <= links(lab.host)
            await network.detach(shaped)
            await network.detach(shaped)
            await until(lambda: lab.leases.documents == {})
            assert links(pod) == set()
            assert links(lab.host) == before | {"crisp0"}
            await network.attach(shaped)
            await network.destroy()

    lab.run(body)
    assert links(lab.host) == before
    assert links(pod) == set()
    assert lab.host.sh("nft list ruleset") == ""
    assert lab.leases.documents == {}


def test_detach_works_when_the_namespace_is_gone(lab: Lab) -> None:
    async def body() -> None:
        async with builtin(lab) as network:
            with Netns() as pod:
                gone = request(pod, PortMapping("tcp", 1, 80))
                await network.attach(gone)
            await network.detach(gone)
            await until(lambda: links(lab.host) == {"crisp0"})
            with pytest.raises(CrispError) as caught:
                await network.attach(gone)
            assert caught.value.code is Code.NOT_FOUND
            assert lab.leases.documents == {}

    lab.run(body)


@pytest.mark.parametrize("mender", ["check", "attach"])
def test_repair_after_flush(lab: Lab, mender: str) -> None:
    pod, second = lab.pod(), lab.pod()
    lab.serve(pod, 8080)
    lab.serve(lab.outside, 80)

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(request(pod, PortMapping("tcp", 8080, 80)))
            lab.host.sh("nft flush ruleset; sysctl -qw net.ipv4.ip_forward=0")
            if mender == "check":
                assert (await network.check()).ready
            else:
                await network.attach(request(second))
            assert ask(lab.outside, "192.0.2.2", 80)
            assert ask(pod, "192.0.2.1", 80) == "192.0.2.2"

    lab.run(body)


def test_repair_of_single_rules_elements_and_the_bridges_state(lab: Lab) -> None:
    pod = lab.pod()
    lab.serve(pod, 8080)

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(request(pod, PortMapping("tcp", 8080, 80)))
            for damage in (
                "nft flush chain inet crisp prerouting",
                "nft flush map inet crisp ports4",
                "nft add element inet crisp ports4 '{ tcp . 81 : 10.0.0.1 . 1 }'",
                "nft delete table inet crisp; nft add table inet crisp",
                "ip link set crisp0 down",
            ):
                lab.host.sh(damage)
                assert (await network.check()).ready
                assert ask(lab.outside, "192.0.2.2", 80)
                assert "81" not in lab.host.sh("nft list map inet crisp ports4")

    lab.run(body)


def test_check_leaves_a_whole_table_alone(lab: Lab) -> None:
    pod = lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(request(pod, PortMapping("sctp", 8080, 80), PortMapping("udp", 1, 2, "127.0.0.1")))
            lab.host.sh("nft add table ip somebody")
            before = lab.host.sh("nft -a list table inet crisp")
            assert (await network.check()).ready
            assert lab.host.sh("nft -a list table inet crisp") == before
            assert "somebody" in lab.host.sh("nft list tables")

    lab.run(body)


def test_check_says_what_is_wrong(lab: Lab) -> None:
    async def body() -> None:
        async with builtin(lab) as network:
            lab.host.sh("ip link del crisp0; ip link add crisp0 type veth peer name other")
            readiness = await network.check()
            assert not readiness.ready
            assert "crisp0 exists and is not a bridge" in readiness.message

    lab.run(body)


def test_a_new_daemon_goes_on_with_the_old_leases(lab: Lab) -> None:
    pod, second = lab.pod(), lab.pod()
    lab.serve(pod, 8080)
    mapped = request(pod, PortMapping("tcp", 8080, 80))
    results = []

    async def first() -> None:
        async with builtin(lab) as network:
            results.append(await network.attach(mapped))

    async def then() -> None:
        lab.host.sh("nft flush ruleset")
        async with builtin(lab) as network:
            assert ask(lab.outside, "192.0.2.2", 80)
            again = await network.attach(request(second))
            assert set(again.ips).isdisjoint(results[0].ips)
            await network.detach(mapped)
            await until(lambda: links(pod) == set())

    lab.run(first)
    lab.run(then)


def test_sweep_removes_what_no_record_explains(lab: Lab) -> None:
    kept, lost, forgotten = lab.pod(), lab.pod(), lab.pod()
    requests = [request(p) for p in (kept, lost, forgotten)]

    async def first() -> None:
        async with builtin(lab) as network:
            for each in requests:
                await network.attach(each)

    async def then() -> None:
        del lab.leases.documents[requests[2].sandbox_id]  # as after the loss of the lease table
        async with builtin(lab) as network:
            await network.sweep({requests[0].sandbox_id})
            assert links(lab.host) == {"crisp0", veth_name(requests[0].sandbox_id)}
            assert list(lab.leases.documents) == [requests[0].sandbox_id]
            assert ask(kept, "10.201.0.1", 9090)

    lab.serve(lab.host, 9090)
    lab.run(first)
    lab.run(then)


def test_a_half_made_attachment_is_made_anew(lab: Lab) -> None:
    pod = lab.pod()
    half = request(pod)
    lab.serve(lab.host, 9090)

    async def first() -> None:
        async with builtin(lab) as network:
            await network.attach(half)
            pod.sh("ip addr flush dev eth0")  # as if the daemon had died before it gave out the address

    async def then() -> None:
        async with builtin(lab) as network:
            result = await network.attach(half)
            assert ask(pod, "10.201.0.1", 9090) == result.ips[0]
            assert len(lab.leases.documents) == 1

    lab.run(first)
    lab.run(then)


def test_cancelled_attach_leaves_nothing(lab: Lab) -> None:
    pod = lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            for turns in range(6):
                task = asyncio.create_task(network.attach(request(pod, PortMapping("tcp", 1, 80))))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert lab.leases.documents == {}
                assert links(lab.host) == {"crisp0"}
            await network.attach(request(pod, PortMapping("tcp", 1, 80)))

    lab.run(body)


def test_a_pod_with_host_ports_goes_without_the_means_to_mend_the_table(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there needs no closing: neither the kubelet nor a daemon that starts is held up."""
    asked = request(lab.pod(), PortMapping("tcp", 8080, 80))

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(asked)
            lab.host.sh("nft delete table inet crisp")
            with monkeypatch.context() as patch:
                patch.setenv("PATH", "/nonexistent")
                await network.detach(asked)
                await until(lambda: lab.leases.documents == {})
                assert "nft is missing" in (await network.check()).message
            assert (await network.check()).ready

    lab.run(body)
    assert links(lab.host) == {"crisp0"}


def test_a_host_port_that_could_not_be_closed_is_closed_by_the_next_try(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(lab.pod(), PortMapping("tcp", 8080, 80))

    async def refuse(*_: object) -> None:
        raise NetlinkError(errno.ENOMEM, "no memory")

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(asked)
            with monkeypatch.context() as patch:
                patch.setattr(Table, "remove", refuse)
                with pytest.raises(CrispError, match=r"cannot disconnect sandbox .* no memory"):
                    await network.detach(asked)
            assert "8080" in lab.host.sh("nft list map inet crisp ports4")
            await network.detach(asked)
            assert "8080" not in lab.host.sh("nft list map inet crisp ports4")
            await until(lambda: lab.leases.documents == {})

    lab.run(body)


def test_two_instances_side_by_side(lab: Lab) -> None:
    a, b = lab.pod(), lab.pod()
    lab.serve(a, 8080)
    lab.serve(b, 8080)
    theirs = MemoryLeases()

    async def body() -> None:
        async with builtin(lab) as one, builtin(lab, OTHER, theirs) as two:
            ra = await one.attach(request(a, PortMapping("tcp", 8080, 80)))
            rb = await two.attach(request(b, PortMapping("tcp", 8080, 81)))
            assert ask(lab.outside, "192.0.2.2", 80)
            assert ask(lab.outside, "192.0.2.2", 81)
            assert ask(a, rb.ips[0], 8080)
            assert ask(b, ra.ips[1], 8080)
            await one.destroy()
            assert (await two.check()).ready
            assert ask(lab.outside, "192.0.2.2", 81)
            assert links(lab.host) == {"crisp1", *theirs.items()[0][1]["links"]}

    lab.run(body)


def test_isolation_refuses_other_bridges_but_not_host_ports(lab: Lab) -> None:
    a, b = lab.pod(), lab.pod()
    lab.serve(a, 8080)
    lab.serve(b, 8080)
    isolated = NetworkConfig(isolated=True)

    async def body() -> None:
        async with builtin(lab, isolated) as one, builtin(lab, OTHER, MemoryLeases()) as two:
            ra = await one.attach(request(a, PortMapping("tcp", 8080, 80)))
            rb = await two.attach(request(b))
            for ip in ra.ips:
                with pytest.raises(OSError):
                    ask(b, ip, 8080, seconds=0.3)
            for ip in rb.ips:
                assert ask(a, ip, 8080)
            assert ask(b, "192.0.2.2", 80)
            assert ask(lab.outside, "192.0.2.2", 80)

    lab.run(body)


def test_bandwidth_annotations_shape_both_directions(lab: Lab) -> None:
    pod = lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            shaped = request(
                pod,
                annotations={
                    "kubernetes.io/ingress-bandwidth": "8M",
                    "kubernetes.io/egress-bandwidth": "40G",
                },
            )
            await network.attach(shaped)
            lab.serve(lab.host, 9090)
            assert ask(pod, "10.201.0.1", 9090)
            assert ask(pod, "fd63:7269:7370::1", 9090)
            veth, ifb = veth_name(shaped.sandbox_id), ifb_name(shaped.sandbox_id)
            [down] = json.loads(lab.host.sh(f"tc -j qdisc show dev {veth} root"))
            assert (down["kind"], down["options"]["rate"]) == ("tbf", 1_000_000)
            [up] = json.loads(lab.host.sh(f"tc -s -j qdisc show dev {ifb} root"))
            assert (up["kind"], up["options"]["rate"]) == ("tbf", 0xFFFFFFFF)
            assert up["packets"] > 0

    lab.run(body)


@pytest.mark.parametrize("address", ["192.0.2.2", "2001:db8::2"])
def test_udp_clients_that_never_pause_follow_a_host_port(lab: Lab, address: str) -> None:
    first, second = lab.pod(), lab.pod()
    for pod in (first, second):
        lab.serve(pod, 8080, kind=socket.SOCK_DGRAM)

    async def body() -> None:
        async with builtin(lab) as network:
            with lab.outside.socket(family_of(address), socket.SOCK_DGRAM) as client:
                client.connect((address, 53))
                client.send(b"too early")
                with pytest.raises(ConnectionRefusedError):
                    client.recv(64)
                for pod in (first, second):
                    mapped = request(pod, PortMapping("udp", 8080, 53))
                    await network.attach(mapped)
                    client.send(b"?")
                    assert client.recv(64)
                    await network.detach(mapped)
                client.send(b"too late")
                with pytest.raises(ConnectionRefusedError):
                    client.recv(64)

    lab.run(body)


def test_a_policy_that_drops_forwarded_packets_is_reported(lab: Lab) -> None:
    async def body() -> None:
        async with builtin(lab) as network:
            lab.host.sh("nft add table ip filter; nft add chain ip filter DOCKER-USER")
            lab.host.sh("nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'")
            readiness = await network.check()
            assert (readiness.ready, readiness.reason) == (True, "ForwardingDropped")
            assert "iptables -I DOCKER-USER -i crisp0" in readiness.message
            lab.host.sh("nft add rule ip filter DOCKER-USER iifname crisp0 accept")
            assert (await network.check()).message == ""

    lab.run(body)


def test_bad_annotations_and_namespaces_are_refused_before_anything_is_made(lab: Lab) -> None:
    pod = lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            with pytest.raises(CrispError, match="ingress-bandwidth"):
                await network.attach(request(pod, annotations={"kubernetes.io/ingress-bandwidth": "fast"}))
            with pytest.raises(CrispError, match="cannot connect sandbox"):
                await network.attach(NetworkRequest(sandbox_id=secrets.token_hex(32), netns_path="/proc/self/ns/uts"))
            pod.sh("ip link add eth0 type veth peer name other")
            with pytest.raises(CrispError, match="cannot connect sandbox"):
                await network.attach(request(pod))
            assert lab.leases.documents == {}
            assert links(lab.host) == {"crisp0"}

    lab.run(body)


def test_subnets_that_the_host_uses_are_left_alone(lab: Lab) -> None:
    lab.host.sh("ip addr add 10.201.7.1/24 dev uplink; ip link add elsewhere type veth peer name cr0123456789a")
    pod = lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            readiness = await network.check()
            assert not readiness.ready
            assert "overlaps the host's route to 10.201.7.0/24" in readiness.message
            with pytest.raises(CrispError, match="overlaps the host's route"):
                await network.attach(request(pod))
            await network.sweep(set())
            assert links(lab.host) == {"elsewhere", "cr0123456789a"}
            assert lab.leases.documents == {}
            lab.host.sh("ip addr del 10.201.7.1/24 dev uplink")
            assert (await network.check()).ready
            await network.attach(request(pod))

    lab.run(body)


def test_forwarding_keeps_router_advertisements(lab: Lab) -> None:
    before = lab.host.sh("sysctl -n net.ipv6.conf.uplink.accept_ra").strip()
    if before != "1":
        pytest.skip("this kernel does not accept router advertisements by default")

    async def body() -> None:
        async with builtin(lab):
            pass

    lab.run(body)
    assert lab.host.sh("sysctl -n net.ipv6.conf.uplink.accept_ra").strip() == "2"


def test_a_kernel_that_cannot_hush_multicast_has_pods_all_the_same(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second table is a comfort: bridge families of nftables are missing from some kernels."""
    monkeypatch.setattr("runtime.network.host.hush", lambda _config: "add table of no family\n")
    a, b = lab.pod(), lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(request(a))
            result = await network.attach(request(b))
            lab.serve(b, 8080)
            assert ask(a, result.ips[0], 8080)

    lab.run(body)
