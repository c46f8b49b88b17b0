"""Version, Status, RuntimeConfig, UpdateRuntimeConfig, and what is not implemented."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet

pytestmark = pytest.mark.root


def test_version(kubelet: Kubelet) -> None:
    reply = kubelet.runtime.Version(cri.VersionRequest(version="v1"))
    assert reply.runtime_name == "crisp"
    assert reply.version
    assert reply.runtime_version
    assert reply.runtime_api_version == "v1"


def test_status(kubelet: Kubelet) -> None:
    reply = kubelet.runtime.Status(cri.StatusRequest(verbose=True))
    conditions = {c.type: c for c in reply.status.conditions}
    assert conditions["RuntimeReady"].status, conditions
    assert conditions["NetworkReady"].status, conditions
    info = json.loads(reply.info["config"])
    names = {h.name for h in reply.runtime_handlers}
    assert "" in names
    assert {"crun", "runc"} <= names | set(info["unusableHandlers"])
    assert reply.features.supplemental_groups_policy
    assert info["handlers"]
    assert not kubelet.runtime.Status(cri.StatusRequest()).info


def test_runtime_config(kubelet: Kubelet) -> None:
    reply = kubelet.runtime.RuntimeConfig(cri.RuntimeConfigRequest())
    assert reply.linux.cgroup_driver == cri.CGROUPFS


@pytest.fixture
def other_daemon() -> Iterator[Daemon]:
    """One of a cluster's node, where no other test wants the builtin network."""
    daemon = Daemon()
    daemon.start()
    yield daemon
    daemon.destroy()


def test_pod_cidr(other_daemon: Daemon) -> None:
    kubelet = Kubelet(other_daemon, "")
    request = cri.UpdateRuntimeConfigRequest()
    request.runtime_config.network_config.pod_cidr = "10.7.0.0/24,fd07::/64"
    kubelet.runtime.UpdateRuntimeConfig(request)
    info = json.loads(kubelet.runtime.Status(cri.StatusRequest(verbose=True)).info["config"])
    assert info["podCIDR"] == "10.7.0.0/24,fd07::/64"
    request.runtime_config.network_config.pod_cidr = "ten"
    with pytest.raises(grpc.RpcError, match="pod CIDR 'ten'"):
        kubelet.runtime.UpdateRuntimeConfig(request)
