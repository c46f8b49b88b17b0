"""Requests that go to the kernel in one piece: all are answered, and what is refused is told in the kernel's words."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from ipaddress import ip_interface

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from runtime.network import requests
from runtime.network.netns import run_in_netns
from tests.kernel.netlab import Netns

pytestmark = pytest.mark.root


@pytest.fixture
def host() -> Iterator[Netns]:
    with Netns() as host:
        host.sh("ip link add br0 type bridge")
        yield host


@pytest.fixture
def pod() -> Iterator[Netns]:
    with Netns() as pod:
        yield pod


def pair(name: str, pod: Netns, master: int) -> requests.Request:
    macs = {"mac": "fe:c5:00:00:00:01", "peer_mac": "02:c5:00:00:00:01"}
    return requests.new_veth(name, mtu=1400, master=master, group=7, peer="eth0", peer_netns=pod.fd, **macs)


def asked(netns: Netns, *wanted: requests.Request) -> None:
    with run_in_netns(netns.fd, requests.netlink_socket) as netlink:
        requests.carry_out(netlink, wanted)


def index(netns: Netns, name: str) -> int:
    return int(netns.run(lambda: socket.if_nametoindex(name)))


def test_a_pod_is_connected(host: Netns, pod: Netns) -> None:
    asked(host, pair("cr0", pod, index(host, "br0")), requests.set_hairpin("cr0"))
    [outside] = json.loads(host.sh("ip -j -d link show cr0"))
    assert (outside["mtu"], outside["master"], outside["address"], outside["group"]) == (
        1400,
        "br0",
        "fe:c5:00:00:00:01",
        "7",
    )
    assert outside["linkinfo"]["info_slave_data"]["hairpin"] is True
    assert "UP" in outside["flags"]
    [inside] = json.loads(pod.sh("ip -j link show eth0"))
    assert (inside["mtu"], inside["address"]) == (1400, "02:c5:00:00:00:01")
    assert "UP" not in inside["flags"]


def test_those_behind_a_refusal_are_carried_out(host: Netns, pod: Netns) -> None:
    pod.sh("ip link add eth1 type bridge; ip link set eth1 up")
    link = index(pod, "eth1")
    unreachable = requests.add_default_route(link, ip_interface("10.1.0.1/16"))
    with pytest.raises(NetlinkError, match="Nexthop has invalid gateway") as caught:
        asked(pod, unreachable, requests.add_address(link, ip_interface("10.2.0.2/16")), unreachable)
    assert caught.value.code == errno.ENETUNREACH
    assert "10.2.0.2/16" in pod.sh("ip addr show eth1")
    asked(pod, requests.add_address(link, ip_interface("fd00::2/64")))
    assert "nodad" in pod.sh("ip addr show eth1")


def test_a_link_that_is_there_already(host: Netns, pod: Netns) -> None:
    host.sh("ip link add cr0 type bridge")
    with pytest.raises(NetlinkError) as caught:
        asked(host, pair("cr0", pod, 0), requests.set_hairpin("cr0"))
    assert caught.value.code == errno.EEXIST
    assert "eth0" not in pod.sh("ip link")


def test_a_socket_can_be_used_again_after_a_refusal(host: Netns, pod: Netns) -> None:
    with run_in_netns(host.fd, requests.netlink_socket) as netlink:
        with pytest.raises(NetlinkError):
            requests.carry_out(netlink, [requests.set_hairpin("none"), requests.set_hairpin("br0")])
        requests.carry_out(netlink, [pair("cr0", pod, 0)])
    assert "eth0" in pod.sh("ip link")
