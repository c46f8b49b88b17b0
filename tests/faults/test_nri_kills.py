"""The daemon is killed while a plugin has a request before it; afterwards the node is whole, and so is what plugins know.

After each: what Synchronize tells is what the lists say, a retry of the client succeeds, and nothing is left over.
"""

from __future__ import annotations

import threading

import grpc
import pytest

from proto import api_pb2 as cri
from tests.faults.test_failpoints import consistent, whole_life
from tests.harness.kubelet import Kubelet
from tests.harness.nri_plugin import NriPlugin

pytestmark = pytest.mark.root

REQUESTS = (
    "RunPodSandbox",
    "UpdatePodSandbox",
    "PostUpdatePodSandbox",
    "CreateContainer",
    "ValidateContainerAdjustment",
    "PostCreateContainer",
    "StartContainer",
    "PostStartContainer",
    "UpdateContainer",
    "PostUpdateContainer",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
)


def test_killed_while_a_plugin_thinks(kubelet: Kubelet) -> None:
    for request in REQUESTS:
        config = kubelet.pod_config("victim")
        killed_during(kubelet, request, config)
        with NriPlugin(kubelet.daemon.nri_socket) as plugin:
            containers = kubelet.runtime.ListContainers(cri.ListContainersRequest()).containers
            alive = {item.id for item in containers if item.state != cri.CONTAINER_EXITED}
            assert {one.id for one in plugin.containers} == alive, request
            sandboxes = {item.id for item in kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items}
            assert {one.id for one in plugin.pods} == sandboxes, request
            consistent(kubelet)  # removes the victim
            stop = [] if request == "RemovePodSandbox" else ["StopPodSandbox"]  # told before
            for key in sandboxes:
                assert plugin.methods(key) == [*stop, "RemovePodSandbox"], request
            for key in alive:
                assert plugin.methods(key) == ["StopContainer", "RemoveContainer"], request
            whole_life(kubelet, config)


def killed_during(kubelet: Kubelet, request: str, config: cri.PodSandboxConfig) -> None:
    """Kills the daemon while a plugin has the request, and starts it again."""
    reached, go = threading.Event(), threading.Event()

    def think(_: object) -> None:
        reached.set()
        go.wait()

    def live() -> None:
        with pytest.raises(grpc.RpcError):
            whole_life(kubelet, config)

    plugin = NriPlugin(kubelet.daemon.nri_socket, on={request: think}).start()
    client = threading.Thread(target=live)
    client.start()
    try:
        assert reached.wait(60), request
        kubelet.daemon.kill()
    finally:
        go.set()
        client.join()
        plugin.close()
    kubelet.daemon.start()
