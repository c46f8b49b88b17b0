"""The builtin network's bridge: whose it is, what belongs to others on it, and that it is mended."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from proto.errors import Code, CrispError
from runtime.network import host as network_host
from runtime.network.config import NetworkConfig
from runtime.network.leases import veth_name
from runtime.network.seam import PortMapping
from tests.kernel.netlab import Netns, ask
from tests.kernel.network_lab import Lab, builtin, links, request

pytestmark = pytest.mark.root

FOREIGN = NetworkConfig(bridge="br-lan")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(stack)


def shown(netns: Netns, link: str) -> dict[str, Any]:
    return dict(json.loads(netns.sh(f"ip -j -d link show {link}"))[0])


def test_a_bridge_of_somebody_else_stays_as_it_is(lab: Lab) -> None:
    """With a neighbour's veth on it, named as nothing of crisp's and as something of crisp's."""
    lab.host.sh(
        "ip link add br-lan type bridge mcast_snooping 1; ip link set br-lan mtu 1450 up;"
        "ip addr add 198.51.100.1/24 dev br-lan; sysctl -qw net.ipv6.conf.br-lan.accept_ra=2;"
        "for n in vm1 cr0123456789a ci0123456789a; do ip link add $n type veth peer name p-$n;"
        "ip link set $n master br-lan up; done"
    )
    before, theirs = shown(lab.host, "br-lan"), links(lab.host)
    pod = lab.pod()
    lab.serve(pod, 8080)
    asked = request(pod, PortMapping("tcp", 8080, 80), annotations={"kubernetes.io/egress-bandwidth": "1G"})

    async def body() -> None:
        async with builtin(lab, FOREIGN) as network:
            await network.sweep(set())
            await network.attach(asked)
            await network.sweep({asked.sandbox_id})
            assert ask(lab.outside, "192.0.2.2", 80)
            assert ask(lab.host, "127.0.0.1", 80)
        async with builtin(lab, FOREIGN) as network:
            await network.sweep({asked.sandbox_id})
            assert (await network.check()).ready
            assert theirs < links(lab.host)
            found = await network_host.shared_traces(FOREIGN)
            assert [trace for trace in found if "vm1" in trace or trace == "interface br-lan"] == []
            assert "address 10.201.0.1/16 of br-lan" in found
            await network.destroy()
        await network_host.remove_shared(FOREIGN)
        assert await network_host.shared_traces(FOREIGN) == []

    lab.run(body)
    after = shown(lab.host, "br-lan")
    assert links(lab.host) == theirs
    for key in ("address", "mtu", "flags", "operstate"):
        assert after[key] == before[key], key
    assert after["linkinfo"]["info_data"]["mcast_snooping"] == 1
    assert "10.201" not in lab.host.sh("ip addr show br-lan")
    assert "198.51.100.1/24" in lab.host.sh("ip addr show br-lan")
    assert lab.host.sh("sysctl -n net.ipv6.conf.br-lan.accept_ra net.ipv4.conf.br-lan.route_localnet").split() == ["2", "0"]


def test_foreign_links_on_crisps_own_bridge_are_not_deleted(lab: Lab) -> None:
    async def body() -> None:
        async with builtin(lab) as network:
            lab.host.sh("ip link add vm1 type veth peer name vm1p; ip link set vm1 master crisp0 up")
            await network.sweep(set())
            assert {"vm1", "vm1p"} <= links(lab.host)
            await network.destroy()
            assert links(lab.host) == {"vm1", "vm1p"}

    lab.run(body)


def test_an_attach_that_finds_its_name_taken_does_not_delete_who_has_it(lab: Lab) -> None:
    asked = request(lab.pod())
    name = veth_name(asked.sandbox_id)
    lab.host.sh(f"ip link add {name} type veth peer name other")

    async def body() -> None:
        async with builtin(lab) as network:
            with pytest.raises(CrispError, match="cannot connect sandbox"):
                await network.attach(asked)
            assert links(lab.host) == {"crisp0", name, "other"}
            assert lab.leases.documents == {}

    lab.run(body)


DAMAGES = {
    "addresses": "ip addr flush dev crisp0",
    "down": "ip link set crisp0 down",
    "down and up": "ip link set crisp0 down; ip link set crisp0 up",
    "deleted": "ip link del crisp0",
    "made anew": "ip link del crisp0; ip link add crisp0 address 02:c5:0a:c9:00:01 type bridge; ip link set crisp0 up",
    "routes": "ip route flush dev crisp0; ip -6 route flush dev crisp0",
    "ports off": "ip link set {veth} nomaster",
    "ports down": "ip link set {veth} down",
    "forwarding": "sysctl -qw net.ipv4.conf.crisp0.forwarding=0 net.ipv6.conf.crisp0.forwarding=0",
    "ipv6": "sysctl -qw net.ipv6.conf.crisp0.disable_ipv6=1",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_bridge_is_mended(lab: Lab, damage: str) -> None:
    pod, other = lab.pod(), lab.pod()
    lab.serve(pod, 8080)
    lab.serve(lab.outside, 80)

    async def body() -> None:
        async with builtin(lab) as network:
            first = request(pod, PortMapping("tcp", 8080, 80))
            result = await network.attach(first)
            await network.attach(request(other))
            lab.host.sh(damage.format(veth=veth_name(first.sandbox_id)))
            assert (await network.check()).message == ""
            for address in result.ips:
                assert ask(other, address, 8080), "from pod to pod"
                assert ask(lab.host, address, 8080), "from the node"
            for address in ("192.0.2.2", "2001:db8::2"):
                assert ask(lab.outside, address, 80), "from outside"
                assert ask(pod, address, 80), "hairpin"
            assert ask(pod, "192.0.2.1", 80) == "192.0.2.2"
            assert ask(pod, "2001:db8::1", 80) == "2001:db8::2"

    lab.run(body)


def test_a_pods_link_that_was_deleted_is_told(lab: Lab) -> None:
    first, second = request(lab.pod()), request(lab.pod())

    async def body() -> None:
        async with builtin(lab) as network:
            for each in (first, second):
                await network.attach(each)
            lab.host.sh(f"ip link del {veth_name(first.sandbox_id)}")
            told = await network.check()
            assert (told.ready, told.reason) == (True, "PodLinksLost")
            assert first.sandbox_id[:11] in told.message
            assert second.sandbox_id[:11] not in told.message
        async with builtin(lab) as network:  # a daemon that starts sees it as well
            await network.sweep({first.sandbox_id, second.sandbox_id})
            assert await network.check() == told
            await network.detach(first)
            assert (await network.check()).message == ""

    lab.run(body)


def test_others_chains_are_looked_at_seldom_if_that_takes_long(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = [1000.0], []

    async def look(*_: object) -> str:
        looks.append(clock[0])
        clock[0] += seconds
        return ""

    monkeypatch.setattr(network_host, "monotonic", lambda: clock[0])
    monkeypatch.setattr(network_host.firewalls, "obstacle", look)

    async def body() -> None:
        async with builtin(lab) as network:
            for number in range(20):
                lab.host.sh(f"nft add table ip change{number}; nft delete table ip change{number}")
                await network.check()
                clock[0] += 5.0

    seconds = 0.1
    lab.run(body)
    assert len(looks) == 21
    looks.clear()
    seconds = 2.0
    lab.run(body)
    assert [later - before >= 60.0 for before, later in itertools.pairwise(looks)] == [True]


def test_a_pods_link_that_somebody_uses_for_something_else(lab: Lab) -> None:
    """It concerns that pod; others are connected again, and the node stays ready."""
    taken, free, pod = request(lab.pod()), request(lab.pod()), lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            for each in (taken, free):
                await network.attach(each)
                lab.host.sh(f"ip link set {veth_name(each.sandbox_id)} nomaster")
            lab.host.sh(f"ip link add link {veth_name(taken.sandbox_id)} mv0 type macvlan mode bridge")
            told = await network.check()
            assert (told.ready, told.reason) == (True, "PodLinksLost")
            assert taken.sandbox_id[:11] in told.message
            assert free.sandbox_id[:11] not in told.message
            assert shown(lab.host, veth_name(free.sandbox_id))["master"] == "crisp0"
            await network.attach(request(pod))
            lab.host.sh("ip link del mv0")
            assert (await network.check()).message == ""
            assert shown(lab.host, veth_name(taken.sandbox_id))["master"] == "crisp0"

    lab.run(body)


@pytest.mark.parametrize("family", [4, 6])
def test_a_route_that_contains_the_subnet_is_an_overlap(lab: Lab, family: int) -> None:
    theirs = "10.0.0.0/8" if family == 4 else "fd00::/8"
    via = "192.0.2.1" if family == 4 else "2001:db8::1"
    pod = lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            await network.destroy()
            lab.host.sh(f"ip -{family} route add {theirs} via {via}")
            told = await network.check()
            assert not told.ready
            assert f"overlaps the host's route to {theirs}" in told.message
            with pytest.raises(CrispError) as caught:
                await network.attach(request(pod))
            assert caught.value.code is Code.FAILED_PRECONDITION
        async with builtin(lab, NetworkConfig(direct=(theirs,))) as network:  # the cluster's own, says the administrator
            assert (await network.check()).ready

    lab.run(body)


def test_halves_of_the_default_route_are_no_overlap(lab: Lab) -> None:
    lab.host.sh("ip route add 0.0.0.0/1 via 192.0.2.1; ip route add 128.0.0.0/1 via 192.0.2.1")

    async def body() -> None:
        async with builtin(lab) as network:
            assert (await network.check()).ready

    lab.run(body)


def test_an_overlap_with_a_bridge_of_somebody_else(lab: Lab) -> None:
    lab.host.sh("ip link add br-lan type bridge; ip link set br-lan up; ip route add 10.201.0.0/20 via 192.0.2.1")

    async def body() -> None:
        async with builtin(lab, FOREIGN) as network:
            told = await network.check()
            assert "overlaps the host's route to 10.201.0.0/20" in told.message

    lab.run(body)


FIREWALLS = {
    "iptables": ("iptables-nft -P FORWARD DROP", "iptables-nft -I FORWARD -i crisp0 -j ACCEPT"),
    "iptables reject": ("iptables-nft -A FORWARD -j REJECT", "iptables-nft -I FORWARD -s 10.201.0.0/16 -j ACCEPT"),
    "ip6tables": ("ip6tables-nft -P FORWARD DROP", "ip6tables-nft -I FORWARD -i crisp0 -j ACCEPT"),
    "legacy": ("iptables-legacy -P FORWARD DROP", "iptables-legacy -I FORWARD -i crisp0 -j ACCEPT"),
    "legacy 6": ("ip6tables-legacy -P FORWARD DROP", "ip6tables-legacy -I FORWARD -i crisp0 -j ACCEPT"),
    "firewalld": (
        "nft add table inet firewalld;"
        "nft add chain inet firewalld filter_FORWARD '{ type filter hook forward priority 10; policy accept; }';"
        "nft add rule inet firewalld filter_FORWARD ct state established,related accept;"
        "nft add rule inet firewalld filter_FORWARD iifname docker0 accept;"
        "nft add rule inet firewalld filter_FORWARD counter reject with icmpx admin-prohibited",
        "nft insert rule inet firewalld filter_FORWARD iifname crisp0 accept",
    ),
    "somebody's": (
        "nft add table inet mine; nft add chain inet mine forwarded '{ type filter hook forward priority 0; policy drop; }'",
        "nft add rule inet mine forwarded ip saddr 10.201.0.0/16 accept",
    ),
    "somebody's rule": (
        "nft add table ip mine; nft add chain ip mine forwarded '{ type filter hook forward priority 0; policy accept; }';"
        "nft add rule ip mine forwarded counter drop",
        "nft insert rule ip mine forwarded iifname crisp0 accept",
    ),
    "sysctl of the uplink": (
        "sysctl -qw net.ipv4.conf.uplink.forwarding=0",
        "sysctl -qw net.ipv4.conf.uplink.forwarding=1",
    ),
}


@pytest.mark.parametrize(("harm", "remedy"), FIREWALLS.values(), ids=FIREWALLS)
def test_a_firewall_that_keeps_pods_in_is_told(lab: Lab, harm: str, remedy: str) -> None:
    program = harm.split(maxsplit=1)[0]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    pod = lab.pod()
    lab.serve(lab.outside, 80)
    address = "2001:db8::1" if "6" in program else "192.0.2.1"

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(request(pod))
            assert ask(pod, address, 80)
            assert (await network.check()).message == ""
            lab.host.sh(harm)
            with pytest.raises(OSError):
                ask(pod, address, 80, seconds=0.3)
            told = await network.check()
            assert (told.ready, told.reason) == (True, "ForwardingDropped")
            assert "crisp0" in told.message or "uplink" in told.message
            lab.host.sh(remedy)
            assert (await network.check()).message == ""

    lab.run(body)


@pytest.mark.parametrize(
    "harmless",
    [
        "nft add table inet mine; nft add chain inet mine forwarded '{ type filter hook input priority 0; policy drop; }'",
        "nft add table inet mine;"
        "nft add chain inet mine forwarded '{ type filter hook forward priority 0; policy accept; }';"
        "nft add rule inet mine forwarded ip daddr 203.0.113.7 drop",
        "nft add table ip6 mine; nft add chain ip6 mine forwarded '{ type nat hook prerouting priority 0; policy drop; }'",
        "iptables-legacy -P INPUT DROP",
    ],
    ids=["input", "some packets", "nat", "legacy input"],
)
def test_other_rules_are_no_obstacle(lab: Lab, harmless: str) -> None:
    if shutil.which(harmless.split(maxsplit=1)[0]) is None:
        pytest.skip(f"{harmless.split(maxsplit=1)[0]} is not installed")

    async def body() -> None:
        async with builtin(lab) as network:
            lab.host.sh(harmless)
            assert (await network.check()).message == ""

    lab.run(body)


def test_forwarding_that_is_off_for_new_interfaces(lab: Lab) -> None:
    lab.host.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    lab.host.sh("sysctl -qw net.ipv4.conf.default.forwarding=0 net.ipv6.conf.default.forwarding=0")
    pod = lab.pod()
    lab.serve(lab.outside, 80)

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(request(pod))
            assert ask(pod, "192.0.2.1", 80)
            assert ask(pod, "2001:db8::1", 80)
            assert (await network.check()).message == ""

    lab.run(body)


FASTER = "ip link add faster type veth peer name slower; ip link set faster mtu 9000 up; ip route replace default dev faster"


def test_the_mtu_follows_the_uplink(lab: Lab) -> None:
    first, second, third = lab.pod(), lab.pod(), lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            for pod, change, mtu in (
                (first, "true", 1400),
                (second, "ip link set uplink mtu 1300", 1300),
                (
                    third,
                    FASTER,
                    9000,
                ),
            ):
                lab.host.sh(change)
                assert (await network.check()).message == ""
                await network.attach(request(pod))
                assert shown(lab.host, "crisp0")["mtu"] == shown(pod, "eth0")["mtu"] == mtu

    lab.run(body)


@pytest.mark.parametrize(
    ("change", "mtu"),
    [("ip link set uplink mtu 1200", 1280), ("ip route replace default dev lo", 65535)],
    ids=["small", "lo"],
)
def test_an_uplink_with_an_mtu_that_no_bridge_can_have(lab: Lab, change: str, mtu: int) -> None:
    """Below 1280 bytes the kernel takes IPv6 off the bridge; lo has one byte more than a bridge may."""
    first, second = lab.pod(), lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(request(first))
            lab.host.sh(change)
            for _ in range(2):
                told = await network.check()
                assert (told.ready, told.message) == (True, "")
            result = await network.attach(request(second))
            assert len(result.ips) == 2
            assert shown(lab.host, "crisp0")["mtu"] == shown(second, "eth0")["mtu"] == mtu

    lab.run(body)


def test_a_pod_that_switches_ipv6_off_with_another_number(lab: Lab) -> None:
    pod = lab.pod()
    pod.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=2")

    async def body() -> None:
        async with builtin(lab) as network:
            result = await network.attach(request(pod, sysctls={"net.ipv6.conf.all.disable_ipv6": "2"}))
            assert result.ips == ("10.201.0.2",)

    lab.run(body)


def test_a_host_port_on_all_addresses_twice(lab: Lab) -> None:
    pod = lab.pod()
    lab.serve(pod, 8080)

    async def body() -> None:
        async with builtin(lab) as network:
            asked = request(
                pod,
                PortMapping("tcp", 8080, 80),
                PortMapping("tcp", 8080, 80, "0.0.0.0"),
                PortMapping("tcp", 8080, 80, "::"),
            )
            await network.attach(asked)
            for address in ("192.0.2.2", "2001:db8::2"):
                assert ask(lab.outside, address, 80)
            await network.detach(asked)
            with pytest.raises(CrispError, match="the same host port twice"):
                await network.attach(request(pod, PortMapping("tcp", 1, 80), PortMapping("tcp", 2, 80)))
            with pytest.raises(OSError):
                ask(lab.outside, "192.0.2.2", 80, seconds=0.3)

    lab.run(body)


def test_a_host_port_on_the_nodes_own_ipv6_loopback_is_refused_at_once(lab: Lab) -> None:
    """So that who asks for "localhost" goes on to 127.0.0.1."""
    pod = lab.pod()
    lab.serve(pod, 8080)

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(request(pod, PortMapping("tcp", 8080, 80)))
            with pytest.raises(ConnectionRefusedError):
                ask(lab.host, "::1", 80)
            assert ask(lab.host, "127.0.0.1", 80)
            assert ask(lab.host, "2001:db8::2", 80)

    lab.run(body)


def test_a_bridge_that_is_full_is_said_before_the_kernel_does(lab: Lab) -> None:
    pod = lab.pod()

    async def body() -> None:
        async with builtin(lab) as network:
            lines = "".join(f"link add a{n} master crisp0 type veth peer name b{n}\n" for n in range(512))
            lines += "".join(f"link set b{n} master crisp0\n" for n in range(511))  # 1023 ports
            lab.host.sh(f"ip -batch - <<'E'\n{lines}E")
            for thorough in (False, True):  # without and with a look at the bridge in between
                if thorough:
                    assert (await network.check()).ready
                with pytest.raises(CrispError, match="crisp0 has 1023 ports, as many as the kernel allows") as caught:
                    await network.attach(request(pod))
                assert caught.value.code is Code.RESOURCE_EXHAUSTED
                assert lab.leases.documents == {}
            lab.host.sh("ip link del a7")
            assert (await network.check()).ready
            await network.attach(request(pod))

    lab.run(body)


def test_one_bad_link_of_a_batch_fails_for_itself(lab: Lab) -> None:
    asked = request(lab.pod())

    async def body() -> None:
        async with builtin(lab) as network:
            await network.attach(asked)
            good = network._remover.remove([veth_name(asked.sandbox_id)])
            outcomes = await asyncio.gather(network._remover.remove(["x" * 40]), good, return_exceptions=True)
            assert isinstance(outcomes[0], Exception)
            assert outcomes[1] is None
            assert veth_name(asked.sandbox_id) not in links(lab.host)

    lab.run(body)


def test_a_link_of_another_with_the_same_name_stays_as_it_is(lab: Lab) -> None:
    pod = lab.pod()
    asked = request(pod)
    name = veth_name(asked.sandbox_id)

    async def body() -> None:
        async with builtin(lab) as network:
            lab.host.sh(f"ip link add {name} type veth peer name theirs; ip link set {name} master crisp0")
            before = shown(lab.host, name)
            with pytest.raises(CrispError, match="File exists"):
                await network.attach(asked)
            now = shown(lab.host, name)
            assert now["linkinfo"] == before["linkinfo"], "as to its port of the bridge, too"
            lab.host.sh(f"ip link del {name}")

    lab.run(body)
