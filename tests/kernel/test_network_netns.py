"""Work inside another network namespace, with real ones."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from proto.errors import Code, CrispError
from runtime.network.netns import dial_in_netns, open_netns, run_in_netns, set_sysctls_in_netns
from tests.kernel.netlab import Echo, Netns

pytestmark = pytest.mark.root


async def answer(netns_path: str | None, port: int) -> str:
    connection = await dial_in_netns(netns_path, port)
    with connection:
        assert connection.getblocking() is False
        connection.setblocking(True)
        return connection.recv(64).decode()


async def test_dial_prefers_ipv4_and_falls_back_to_ipv6() -> None:
    with Netns() as pod, Echo(pod, 80, bind="127.0.0.1"), Echo(pod, 81, bind="::1"):
        assert await answer(pod.path, 80) == "127.0.0.1"
        assert await answer(pod.path, 81) == "::1"


async def test_dial_reaches_that_namespace_and_no_other() -> None:
    with Netns() as pod, Netns() as other, Echo(pod, 80, bind="127.0.0.1"):
        with pytest.raises(CrispError, match=r"127\.0\.0\.1: Connection refused; ::1: Connection refused") as caught:
            await dial_in_netns(other.path, 80)
        assert caught.value.code is Code.UNAVAILABLE


async def test_dial_without_a_namespace_is_the_hosts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = await dial_in_netns(None, server.getsockname()[1])
        accepted, _ = server.accept()
        connection.close()
        accepted.close()


@pytest.mark.parametrize("path", ["/nowhere", "/proc/self/ns/uts"])
async def test_dial_into_what_is_no_namespace(path: str) -> None:
    with pytest.raises(CrispError) as caught:
        await dial_in_netns(path, 80)
    assert caught.value.code is Code.NOT_FOUND


def test_the_caller_stays_where_it_is() -> None:
    here = os.readlink("/proc/thread-self/ns/net")
    with Netns() as pod:
        there = run_in_netns(pod.fd, lambda: os.readlink("/proc/thread-self/ns/net"))
        assert there != here
        with pytest.raises(ZeroDivisionError):
            run_in_netns(pod.fd, lambda: 1 // 0)
    assert os.readlink("/proc/thread-self/ns/net") == here


def test_sysctls() -> None:
    with Netns() as pod:
        before = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
        set_sysctls_in_netns(pod.path, {"net.ipv4.ip_unprivileged_port_start": "7", "net/ipv4/conf/lo/arp_ignore": "1"})
        assert pod.sh("sysctl -n net.ipv4.ip_unprivileged_port_start net.ipv4.conf.lo.arp_ignore").split() == ["7", "1"]
        assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == before
        with pytest.raises(CrispError, match=r"cannot set sysctl net\.nonsense=1 in the pod: No such file") as caught:
            set_sysctls_in_netns(pod.path, {"net.nonsense": "1"})
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_path_that_is_not_there() -> None:
    with pytest.raises(CrispError) as caught:
        open_netns("/nowhere")
    assert caught.value.code is Code.NOT_FOUND
