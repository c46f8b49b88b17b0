"""Two daemons on one host that were given the same names: neither takes the other's pods for left-overs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernel import cgroups
from proto import api_pb2 as cri
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.rootfs import make_rootfs

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_network")]


def test_the_second_does_not_sweep_the_firsts_pods(tmp_path: Path) -> None:
    first, second = Daemon(), Daemon()
    second.config.write_text(second.config.read_text().replace(second.cgroup_parent, first.cgroup_parent))
    try:
        first.start()
        kubelet = Kubelet.on(first, make_rootfs(tmp_path / "rootfs"))
        config = kubelet.pod_config()
        config.linux.cgroup_parent = ""
        container = kubelet.pod(config).run("/bin/sleep", "1000")
        second.start()
        assert container.sh("echo here") == "here\n"
        assert container.status().state == cri.CONTAINER_RUNNING
        told = [json.loads(line) for line in second.log_path.read_text().splitlines() if "uses the same" in line]
        assert {line["shared"] for line in told} == {
            f"cgroup parent {first.cgroup_parent}",
            "bridge crisp0",
            "nftables table crisp",
        }
        assert "uses the same" not in first.log_path.read_text()
        # A group that this state directory has made, and no record explains, goes.
        lost = "e" * 64
        (second.state / "sandboxes" / lost).mkdir()
        group = cgroups.detect().group(f"{first.cgroup_parent.strip('/')}/pod{lost}")
        group.create()
        second.kill()
        second.start()
        assert not group.exists()
        assert container.sh("echo here") == "here\n"
    finally:
        second.destroy()
        first.destroy()
