"""What a disconnected pod has yet to give back: it is off the network at once, and nobody gets what is not free yet."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from proto.errors import Code, CrispError
from runtime.network import departures
from runtime.network.config import NetworkConfig
from runtime.network.leases import veth_name
from runtime.network.teardown import LinkRemover
from tests.harness.waiting import until
from tests.kernel.netlab import ask
from tests.kernel.network_lab import Lab, builtin, links, request

pytestmark = pytest.mark.root

SMALL = NetworkConfig(subnets=("10.201.0.0/29",))
"""Five addresses for pods."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(stack)


class Gate:
    """Deletions of links wait until it is open, and are refused as often as asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refusals: int = 0) -> None:
        self.open = asyncio.Event()
        self.refusals = refusals
        self.stuck = ""
        """A link that waits until `freed` is set."""
        self.freed = asyncio.Event()
        original = LinkRemover.remove

        async def remove(remover: LinkRemover, names: Sequence[str]) -> None:
            await self.open.wait()
            if self.stuck in names:
                await self.freed.wait()
            if self.refusals:
                self.refusals -= 1
                raise NetlinkError(errno.ENOMEM, "no memory")
            await original(remover, names)

        monkeypatch.setattr(LinkRemover, "remove", remove)


def test_a_pod_that_is_disconnected_neither_sends_nor_receives(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pod, other = lab.pod(), lab.pod()
    for netns in (pod, other, lab.host):
        lab.serve(netns, 8080)

    async def body() -> None:
        gate = Gate(monkeypatch)
        async with builtin(lab) as network:
            asked = request(pod)
            mine = (await network.attach(asked)).ips
            theirs = (await network.attach(request(other))).ips
            assert ask(lab.host, mine[0], 8080)
            await network.detach(asked)
            assert veth_name(asked.sandbox_id) in links(lab.host), "it is there still"
            assert asked.sandbox_id in lab.leases.documents
            for netns, addresses in ((lab.host, mine), (other, mine), (pod, (*theirs, "10.201.0.1", "192.0.2.1"))):
                for address in addresses:
                    with pytest.raises(OSError):
                        ask(netns, address, 8080, seconds=0.2)
            assert (await network.check()).ready, "and nobody mends it"
            with pytest.raises(OSError):
                ask(lab.host, mine[0], 8080, seconds=0.2)
            gate.open.set()
            await until(lambda: asked.sandbox_id not in lab.leases.documents)
            assert veth_name(asked.sandbox_id) not in links(lab.host)
            assert ask(lab.host, theirs[0], 8080)

    lab.run(body)


def test_its_address_is_given_to_nobody_before(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departures, "ROOM_SECONDS", 0.1)
    pods = [lab.pod() for _ in range(6)]

    async def body() -> None:
        gate = Gate(monkeypatch)
        async with builtin(lab, SMALL) as network:
            asked = [request(pod) for pod in pods]
            taken = [(await network.attach(one)).ips for one in asked[:5]]
            await network.detach(asked[2])
            with pytest.raises(CrispError) as caught:
                await network.attach(asked[5])
            assert caught.value.code is Code.RESOURCE_EXHAUSTED
            monkeypatch.setattr(departures, "ROOM_SECONDS", 60.0)
            waiting = asyncio.ensure_future(network.attach(asked[5]))
            await asyncio.sleep(0)
            gate.open.set()
            assert (await waiting).ips == taken[2], "and whoever needs it waits for it"
            assert asked[2].sandbox_id not in lab.leases.documents

    lab.run(body)


def test_one_that_cannot_go_holds_nobody_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departures, "ROOM_SECONDS", 3600.0)
    pods = [lab.pod() for _ in range(7)]

    async def body() -> None:
        gate = Gate(monkeypatch)
        gate.stuck = veth_name(asked[0].sandbox_id)
        async with builtin(lab, SMALL) as network:
            taken = [(await network.attach(one)).ips for one in asked[:5]]
            for one in asked[:3]:
                await network.detach(one)
            waiting = asyncio.gather(*map(network.attach, asked[5:]))
            await asyncio.sleep(0)
            gate.open.set()
            found = await asyncio.wait_for(waiting, 30)
            assert {one.ips for one in found} == set(taken[1:3])
            assert asked[0].sandbox_id in lab.leases.documents
            gate.stuck = ""
            gate.freed.set()

    asked = [request(pod) for pod in pods]
    lab.run(body)


def test_a_link_that_cannot_be_deleted_is_tried_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departures, "PAUSES", (0.01,))

    async def body() -> None:
        gate = Gate(monkeypatch, refusals=3)
        gate.open.set()
        async with builtin(lab) as network:
            asked = request(lab.pod())
            await network.attach(asked)
            await network.detach(asked)
            await until(lambda: lab.leases.documents == {})
            assert gate.refusals == 0
            assert links(lab.host) == {"crisp0"}

    lab.run(body)


def test_the_next_daemon_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of this one but the lease."""
    asked, stays = request(lab.pod()), request(lab.pod())
    monkeypatch.setattr(departures, "CLOSE_SECONDS", 0.01)

    async def killed() -> None:
        Gate(monkeypatch)
        async with builtin(lab) as network:
            await network.attach(stays)
            await network.attach(asked)
            await network.detach(asked)
        assert {asked.sandbox_id, stays.sandbox_id} == set(lab.leases.documents)

    async def body() -> None:
        async with builtin(lab) as network:
            await network.sweep({stays.sandbox_id})
            assert list(lab.leases.documents) == [stays.sandbox_id]
            assert links(lab.host) == {"crisp0", veth_name(stays.sandbox_id)}

    lab.run(killed)
    monkeypatch.undo()
    lab.run(body)


def test_they_are_bounded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departures, "MAX_DEPARTURES", 0)

    async def body() -> None:
        async with builtin(lab) as network:
            asked = request(lab.pod())
            await network.attach(asked)
            await network.detach(asked)
            assert lab.leases.documents == {}, "whoever comes too much waits"
            assert links(lab.host) == {"crisp0"}

    lab.run(body)


def test_an_attach_of_the_same_sandbox_takes_over(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = lab.pod()
    lab.serve(pod, 8080)

    async def body() -> None:
        gate = Gate(monkeypatch)
        async with builtin(lab) as network:
            asked = request(pod)
            await network.attach(asked)
            await network.detach(asked)
            gate.open.set()
            ips = (await network.attach(asked)).ips
            assert ask(lab.host, ips[0], 8080)
            assert list(lab.leases.documents) == [asked.sandbox_id]

    lab.run(body)
