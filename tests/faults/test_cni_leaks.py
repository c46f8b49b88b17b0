"""No address leaks when the daemon is killed while plugins add a pod.

CRISP_CNI_KILLS sets how often it is killed (15; 100 takes about two minutes). Each time several pods are being made, and
the plugins go on after the daemon that started them is dead and another one serves.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import Daemon
from tests.harness.host import CNI_PLUGINS, needs_cni_plugins
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until

KILLS = int(os.environ.get("CRISP_CNI_KILLS", "6"))
PODS = 4
"""Per kill."""

LATE_IPAM = """#!/bin/bash
if [ "$CNI_COMMAND" = ADD ] && [ $((RANDOM % 2)) = 0 ]; then
    while [ ! -e {go} ]; do sleep 0.02; done
fi
exec /usr/lib/cni/host-local
"""
"""Every second time it hands out an address only when it is let go: after another daemon has started."""

pytestmark = [
    pytest.mark.root,
    needs_cni_plugins,
]


class Node:
    """A daemon that serves CNI, with addresses that take their time."""

    def __init__(self) -> None:
        self.daemon = Daemon()
        folder = self.daemon.directory
        self.bridge = f"cl{os.getpid()}"
        self.addresses = folder / "ipam"
        bin_dir, conf_dir = folder / "bin", folder / "net.d"
        for directory in (bin_dir, conf_dir):
            directory.mkdir()
        program = bin_dir / "late-ipam"
        self.go = folder / "go"
        program.write_text(LATE_IPAM.format(go=self.go))
        program.chmod(0o755)
        ipam = {"type": "late-ipam", "dataDir": str(self.addresses), "ranges": [[{"subnet": "10.88.0.0/16"}]]}
        plugins = [
            {"type": "bridge", "bridge": self.bridge, "isGateway": True, "ipam": ipam},
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
        ]
        conflist = {"cniVersion": "1.0.0", "name": "leaks", "plugins": plugins}
        (conf_dir / "10-leaks.conflist").write_text(json.dumps(conflist))
        text = self.daemon.config.read_text()
        dirs = f'bin_dirs = ["{bin_dir}", "{CNI_PLUGINS}"]\n'
        self.daemon.config.write_text(text.replace("[network.cni]\n", f'[network]\nmode = "cni"\n[network.cni]\n{dirs}'))

    def reserved(self) -> set[str]:
        names = (path.name for path in self.addresses.glob("leaks/*"))
        return {name for name in names if name[0].isdigit()}

    def busy(self) -> list[str]:
        """Sandboxes that plugins of this or an earlier daemon may work on."""
        try:
            return os.listdir(self.daemon.state / "cni")
        except FileNotFoundError:
            return []

    def ports(self) -> list[str]:
        listed = subprocess.run(["ip", "-j", "link", "show", "master", self.bridge], capture_output=True, check=True)
        return [link["ifname"] for link in json.loads(listed.stdout or "[]")]


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    node.daemon.start()
    yield node
    node.daemon.destroy()


def test_no_address_leaks(node: Node) -> None:
    kubelet = Kubelet(node.daemon, "")
    chance = random.Random(KILLS)
    for _ in range(KILLS):
        node.go.unlink(missing_ok=True)
        threads = [threading.Thread(target=make, args=(kubelet,)) for _ in range(PODS)]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0, 0.4))
        node.daemon.kill()
        for thread in threads:
            thread.join()
        node.daemon.start()
        node.go.touch()
        assert addresses(kubelet) <= node.reserved()
        wait_until(lambda: not node.busy())
    wait_until(lambda: node.reserved() == addresses(kubelet))
    made = len(addresses(kubelet))
    assert 0 < made < KILLS * PODS, "some pods were made and some were cut short"
    node.daemon.remove_all()
    assert node.reserved() == set()
    wait_until(lambda: node.ports() == [])
    assert node.busy() == []
    assert node.daemon.leftovers() == []


def make(kubelet: Kubelet) -> None:
    try:
        kubelet.pod()
    except (grpc.RpcError, ValueError, AssertionError):  # the daemon died, or had died and has no client any more
        pass


def addresses(kubelet: Kubelet) -> set[str]:
    found = set()
    for item in kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
        status = kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=item.id)).status
        assert status.network.ip
        found.add(status.network.ip)
    return found
