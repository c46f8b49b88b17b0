"""Which of the two networks a pod gets, and that it is given back to the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proto.errors import CrispError
from runtime.network.auto import AutoNetwork
from runtime.network.config import CniConfig, HandlerNetworks, NetworkConfig
from tests.harness.waiting import until
from tests.kernel.fake_plugin import FakePlugin
from tests.kernel.network_lab import Lab, links, request

pytestmark = pytest.mark.root

CONFLIST = '{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "fake"}]}'


class AutoLab(Lab):
    def __init__(self, stack: ExitStack, tmp: Path) -> None:
        super().__init__(stack)
        self.tmp = tmp
        self.plugin = FakePlugin(tmp)
        self.conf_dir = tmp / "net.d"
        self.conf_dir.mkdir()
        self.file = self.conf_dir / "10-net.conflist"

    @asynccontextmanager
    async def network(self, mode: str = "auto", **options: Any) -> AsyncIterator[AutoNetwork]:
        cni = CniConfig(conf_dir=self.conf_dir, bin_dirs=(self.plugin.bin_dir,), plugin_seconds=10)
        files = (str(self.tmp / "kubeadm-flags.env"), str(self.tmp / "kubelet.conf"))
        network = AutoNetwork(
            NetworkConfig(mode=mode, cni=cni, cluster_files=files), self.leases, self.tmp / "locks", **options
        )
        try:
            await network.start()
            yield network
        finally:
            await network.close()


async def attached_by(network: AutoNetwork, asked: Any) -> str:
    return str((await network.attach(asked)).detail["network"])


async def follows(network: AutoNetwork) -> None:
    """Until the configuration is seen."""
    async with asyncio.timeout(60):
        while (await network.check()).message or not network.uses_cni:
            await asyncio.sleep(0.01)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[AutoLab]:
    with ExitStack() as stack:
        yield AutoLab(stack, tmp_path)


def test_builtin_until_there_is_a_configuration(lab: AutoLab) -> None:
    early, late, after = (request(lab.pod()) for _ in range(3))

    async def first() -> None:
        async with lab.network() as network:
            assert (await network.check()).ready
            assert await attached_by(network, early) == "builtin"
            lab.file.write_text(CONFLIST)
            await follows(network)
            assert await attached_by(network, late) == "cni"
            lab.file.unlink()
            async with asyncio.timeout(60):
                while (await network.check()).ready:
                    await asyncio.sleep(0.01)
            with pytest.raises(CrispError, match="the pod has no network"):
                await network.attach(after)

    async def then() -> None:
        lab.file.write_text(CONFLIST)
        async with lab.network() as network:
            await network.sweep({early.sandbox_id, late.sandbox_id})
            assert await attached_by(network, after) == "cni"
            for asked in (early, late, after):
                await network.detach(asked)
            await until(lambda: lab.leases.documents == {})
            assert links(lab.host) == {"crisp0"}
            assert [c for c in lab.plugin.calls() if c != "CHECK"] == ["ADD", "ADD", "DEL", "DEL"]

    lab.run(first)
    lab.run(then)


def test_a_host_with_cni_is_not_touched_by_the_builtin_network(lab: AutoLab) -> None:
    lab.file.write_text(CONFLIST)

    async def body() -> None:
        async with lab.network() as network:
            assert (await network.check()).ready
            asked = request(lab.pod())
            assert await attached_by(network, asked) == "cni"
            await network.destroy()

    lab.run(body)
    assert links(lab.host) == set()
    assert lab.host.sh("nft list ruleset") == ""
    assert lab.leases.documents == {}


def test_a_bad_configuration_is_a_remark_while_the_builtin_network_serves(lab: AutoLab) -> None:
    lab.file.write_text("{")

    async def body() -> None:
        async with lab.network() as network:
            told = await network.check()
            assert (told.ready, told.reason) == (True, "CNIConfigIgnored")
            assert f"the builtin network serves until this is mended: {lab.file}: not JSON" in told.message
            assert await attached_by(network, request(lab.pod())) == "builtin"

    lab.run(body)


@pytest.mark.parametrize("sign", ["file", "pod CIDR"])
def test_a_node_of_a_cluster_waits_for_its_plugin(lab: AutoLab, sign: str) -> None:
    """As kubeadm has it: crisp is there first, then the kubelet, which asks for the status and would be given CoreDNS; the
    plugin's configuration comes last."""
    before, coredns, later = (request(lab.pod()) for _ in range(3))

    async def first() -> None:
        async with lab.network() as network:
            assert (await network.check()).ready
            assert await attached_by(network, before) == "builtin"
            if sign == "file":
                (lab.tmp / "kubeadm-flags.env").write_text("KUBELET_KUBEADM_ARGS=")
            else:
                await network.set_pod_cidrs(["10.244.0.0/24"])
            told = await network.check()
            assert (told.ready, told.reason) == (False, "NetworkPluginNotReady")
            assert f"no usable CNI network configuration in {lab.conf_dir}" in told.message
            assert 'network.mode = "builtin"' in told.message
            with pytest.raises(CrispError, match="a cluster's network is expected"):
                await network.attach(coredns)
            lab.file.write_text(CONFLIST)
            await follows(network)
            assert await attached_by(network, coredns) == "cni"

    async def restarted() -> None:
        """A reboot: the kubelet's files are there, and the daemon knows the pod CIDR, before anything else happens."""
        lab.file.unlink()
        cidrs = ["10.244.0.0/24"] if sign == "pod CIDR" else []
        async with lab.network(pod_cidrs=cidrs) as network:
            await network.sweep({before.sandbox_id, coredns.sandbox_id})
            assert not (await network.check()).ready
            with pytest.raises(CrispError):
                await network.attach(later)
            for asked in (before, coredns):
                await network.detach(asked)
            assert later.sandbox_id not in lab.leases.documents

    lab.run(first)
    lab.run(restarted)


def test_a_node_of_a_cluster_is_not_touched_by_the_builtin_network(lab: AutoLab) -> None:
    (lab.tmp / "kubelet.conf").write_text("")

    async def body() -> None:
        async with lab.network() as network:
            assert not (await network.check()).ready

    lab.run(body)
    assert links(lab.host) == set()
    assert lab.host.sh("nft list ruleset") == ""


def test_mode_builtin_is_what_the_administrator_says(lab: AutoLab) -> None:
    (lab.tmp / "kubelet.conf").write_text("")

    async def body() -> None:
        async with lab.network("builtin", pod_cidrs=["10.244.0.0/24"]) as network:
            assert (await network.check()).ready
            assert await attached_by(network, request(lab.pod())) == "builtin"

    lab.run(body)


def test_mode_cni_waits_for_a_configuration(lab: AutoLab) -> None:
    async def body() -> None:
        async with lab.network("cni") as network:
            told = await network.check()
            assert not told.ready
            assert str(lab.conf_dir) in told.message
            lab.file.write_text(CONFLIST)
            await follows(network)
            assert (await network.check()).ready

    lab.run(body)
    assert links(lab.host) == set()


def test_mode_builtin_does_not_look_at_configurations(lab: AutoLab) -> None:
    lab.file.write_text(CONFLIST)
    kept = request(lab.pod())

    async def cni() -> None:
        async with lab.network("cni") as network:
            await network.attach(kept)

    async def builtin() -> None:
        async with lab.network("builtin") as network:
            await network.sweep({kept.sandbox_id})
            assert (await network.check()).ready
            assert await attached_by(network, request(lab.pod())) == "builtin"
            await network.detach(kept)  # of an earlier configuration of the daemon
            assert kept.sandbox_id not in lab.leases.documents

    lab.run(cni)
    lab.run(builtin)


def test_a_handler_with_networks_of_its_own(lab: AutoLab) -> None:
    theirs = lab.tmp / "handler.d"
    theirs.mkdir()
    (theirs / "10-net.conflist").write_text(CONFLIST)

    async def body() -> None:
        async with lab.network(handlers={"kata": HandlerNetworks(theirs, 1)}) as network:
            assert await attached_by(network, request(lab.pod())) == "builtin"
            assert await attached_by(network, request(lab.pod(), runtime_handler="kata")) == "cni"

    lab.run(body)
