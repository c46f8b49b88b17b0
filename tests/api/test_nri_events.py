"""NRI plugins hear of every pod and container, in order, each thing once; what they refuse is undone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import grpc
import pytest

from proto import api_pb2 as cri
from proto import nri_pb2 as nri
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet, some_limit
from tests.harness.nri_plugin import NriPlugin, Refuse, event_mask

pytestmark = pytest.mark.root


@pytest.fixture
def plugin(kubelet: Kubelet) -> Iterator[NriPlugin]:
    with NriPlugin(kubelet.daemon.nri_socket) as plugin:
        yield plugin


def listed(kubelet: Kubelet) -> set[str]:
    pods = kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items
    containers = kubelet.runtime.ListContainers(cri.ListContainersRequest()).containers
    return {item.id for item in (*pods, *containers)}


def test_a_whole_life(kubelet: Kubelet, plugin: NriPlugin) -> None:
    pod = kubelet.pod()
    container = pod.run("/bin/sleep", "1000")
    container.update(**some_limit(512))
    container.stop()
    container.remove()
    kubelet.runtime.UpdatePodSandboxResources(
        cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod.id, resources=cri.LinuxContainerResources(cpu_shares=300))
    )
    pod.stop()
    pod.stop()
    pod.remove()
    plugin.wait_for("RemovePodSandbox")
    assert plugin.methods(pod.id) == [
        "RunPodSandbox",
        "UpdatePodSandbox",
        "PostUpdatePodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
    ]
    assert plugin.methods(container.id) == [
        "CreateContainer",
        "ValidateContainerAdjustment",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "UpdateContainer",
        "PostUpdateContainer",
        "StopContainer",
        "RemoveContainer",
    ]
    asked = {one.method: one.request for one in plugin.asked}
    assert asked["RunPodSandbox"].pod.name == pod.config.metadata.name
    assert asked["RunPodSandbox"].pod.uid == pod.config.metadata.uid
    assert list(asked["RunPodSandbox"].pod.ips), "the network is there"
    assert asked["UpdatePodSandbox"].linux_resources.cpu.shares.value == 300
    assert asked["UpdatePodSandbox"].pod.linux.pod_resources.cpu.shares.value == 0, "before"
    assert asked["PostUpdatePodSandbox"].pod.linux.pod_resources.cpu.shares.value == 300, "after"
    states = {
        method: nri.ContainerState.Name(request.container.state) for method, request in asked.items() if "Con" in method
    }
    assert states["CreateContainer"] == "CONTAINER_UNKNOWN"
    assert states["PostCreateContainer"] == states["StartContainer"] == "CONTAINER_CREATED"
    assert states["PostStartContainer"] == states["UpdateContainer"] == "CONTAINER_RUNNING"
    assert states["StopContainer"] == states["RemoveContainer"] == "CONTAINER_STOPPED"
    assert asked["PostStartContainer"].container.pid > 0
    assert list(asked["CreateContainer"].container.args) == ["/bin/sleep", "1000"]
    assert asked["StopContainer"].container.exit_code == 137
    assert {request.pod.id for request in asked.values()} == {pod.id}


def test_a_pod_that_stops_has_its_network_yet(kubelet: Kubelet, plugin: NriPlugin) -> None:
    """A driver takes its devices back out of it."""
    there: list[bool] = []

    def look(request: nri.StopPodSandboxRequest) -> None:
        there.extend(os.path.exists(one.path) for one in request.pod.linux.namespaces if one.type == "network")

    plugin.on["StopPodSandbox"] = look
    pod = kubelet.pod()
    pod.stop()
    pod.remove()
    assert there == [True]
    assert not plugin.wait_for("RemovePodSandbox").request.pod.linux.namespaces


def test_an_end_that_nobody_asked_for_is_told(kubelet: Kubelet, plugin: NriPlugin) -> None:
    container = kubelet.pod().shell("exit 3")
    asked = plugin.wait_for("StopContainer")
    assert (asked.container, asked.request.container.exit_code) == (container.id, 3)
    container.stop()
    container.remove()
    assert plugin.methods(container.id)[-2:] == ["StopContainer", "RemoveContainer"]


def test_a_pod_that_is_removed_while_its_containers_run(kubelet: Kubelet, plugin: NriPlugin) -> None:
    pod = kubelet.pod()
    containers = [pod.run("/bin/sleep", "1000"), pod.create("/bin/sleep", "1000")]
    pod.remove()
    methods = plugin.methods()
    for container in containers:
        assert plugin.methods(container.id)[-2:] == ["StopContainer", "RemoveContainer"]
    ends = [i for i, method in enumerate(methods) if method == "StopContainer"]
    assert max(ends) < methods.index("StopPodSandbox") < methods.index("RemovePodSandbox")
    assert methods.count("StopPodSandbox") == methods.count("RemovePodSandbox") == 1


def test_only_what_was_asked_for_is_told(kubelet: Kubelet) -> None:
    with NriPlugin(kubelet.daemon.nri_socket, events=event_mask("StopPodSandbox", "StartContainer")) as plugin:
        pod = kubelet.pod()
        pod.run("/bin/true")
        pod.remove()
        assert plugin.methods() == ["StartContainer", "StopPodSandbox"]


def test_plugins_are_asked_in_the_order_of_their_indexes(kubelet: Kubelet) -> None:
    order: list[str] = []

    def note(index: str) -> dict[str, object]:
        return {"RunPodSandbox": lambda _: order.append(index)}

    socket = kubelet.daemon.nri_socket
    with (
        NriPlugin(socket, index="50", on=note("50")),  # type: ignore[arg-type]
        NriPlugin(socket, index="05", on=note("05")),  # type: ignore[arg-type]
        NriPlugin(socket, index="99", on=note("99")),  # type: ignore[arg-type]
    ):
        kubelet.pod()
    assert order == ["05", "50", "99"]


def test_a_plugin_without_own_methods_hears_by_state_change(kubelet: Kubelet) -> None:
    """As those that were built with NRI before v0.12."""

    def missing(_: object) -> None:
        raise Refuse("no such method", code=12)

    old = ("RunPodSandbox", "PostCreateContainer", "StartContainer", "PostStartContainer", "RemoveContainer")
    with NriPlugin(kubelet.daemon.nri_socket, on=dict.fromkeys(old, missing)) as plugin:
        pod = kubelet.pod()
        pod.run("/bin/sleep", "1000").remove()
        kubelet.pod()
        changes = [nri.Event.Name(a.request.event) for a in plugin.asked if a.method == "StateChange"]
        assert changes == [
            "RUN_POD_SANDBOX",
            "POST_CREATE_CONTAINER",
            "START_CONTAINER",
            "POST_START_CONTAINER",
            "REMOVE_CONTAINER",
            "RUN_POD_SANDBOX",
        ]
        assert plugin.methods().count("RunPodSandbox") == 1, "it is not tried again"


def test_a_plugin_that_names_no_events_need_not_know_all(kubelet: Kubelet) -> None:
    def missing(_: object) -> None:
        raise Refuse("no such method", code=12)

    with NriPlugin(kubelet.daemon.nri_socket, on={"ValidateContainerAdjustment": missing}) as plugin:
        pod = kubelet.pod()
        pod.create("/bin/true")
        pod.create("/bin/true")
        assert plugin.methods().count("ValidateContainerAdjustment") == 1
        assert plugin.methods().count("CreateContainer") == 2
    named = event_mask("ValidateContainerAdjustment")
    with (
        NriPlugin(kubelet.daemon.nri_socket, events=named, on={"ValidateContainerAdjustment": missing}),
        pytest.raises(grpc.RpcError, match="refuses ValidateContainerAdjustment"),
    ):
        pod.create("/bin/true")


# ---- refusals ----


class Once:
    """A handler that refuses the first time."""

    def __init__(self) -> None:
        self.refused = False

    def __call__(self, _: object) -> None:
        if not self.refused:
            self.refused = True
            raise Refuse("not today")


def test_a_refused_sandbox_is_undone(kubelet: Kubelet, plugin: NriPlugin) -> None:
    plugin.on["RunPodSandbox"] = Once()
    config = kubelet.pod_config()
    with pytest.raises(grpc.RpcError, match="10-tester refuses RunPodSandbox: not today"):
        kubelet.pod(config)
    assert listed(kubelet) == set()
    assert kubelet.daemon.leftovers() == []
    failed = plugin.asked[0].pod
    assert plugin.methods(failed) == ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]
    pod = kubelet.pod(config)
    assert pod.status().state == cri.SANDBOX_READY
    assert pod.id != failed


def test_a_refused_container_is_undone(kubelet: Kubelet, plugin: NriPlugin) -> None:
    plugin.on["CreateContainer"] = Once()
    pod = kubelet.pod()
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="x"))
    with pytest.raises(grpc.RpcError, match="10-tester refuses CreateContainer: not today"):
        pod.create("/bin/true", config=config)
    failed = plugin.wait_for("CreateContainer").container
    assert plugin.methods(failed) == ["CreateContainer", "StopContainer", "RemoveContainer"]
    assert listed(kubelet) == {pod.id}
    assert not list(kubelet.daemon.root.glob("containers/*"))
    pod.create("/bin/true", config=config).start()


def test_a_long_refusal_reaches_the_client(kubelet: Kubelet, plugin: NriPlugin) -> None:
    def refuse(_: object) -> None:
        raise Refuse("because " + "x" * (1 << 20))

    plugin.on["RunPodSandbox"] = refuse
    with pytest.raises(grpc.RpcError, match="refuses RunPodSandbox: because") as caught:
        kubelet.pod()
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_a_refused_start_leaves_it_created(kubelet: Kubelet, plugin: NriPlugin) -> None:
    plugin.on["StartContainer"] = Once()
    container = kubelet.pod().create("/bin/sleep", "1000")
    with pytest.raises(grpc.RpcError, match="10-tester refuses StartContainer: not today"):
        container.start()
    assert container.status().state == cri.CONTAINER_CREATED
    container.start()
    assert container.status().state == cri.CONTAINER_RUNNING


def test_a_refused_update_changes_nothing(kubelet: Kubelet, plugin: NriPlugin) -> None:
    plugin.on["UpdateContainer"] = Once()
    container = kubelet.pod().run("/bin/sleep", "1000")
    before = container.status().resources
    with pytest.raises(grpc.RpcError, match="10-tester refuses UpdateContainer: not today"):
        container.update(**some_limit(512))
    assert container.status().resources == before
    container.update(**some_limit(512))
    assert container.status().resources != before


def test_a_refused_pod_update_changes_nothing(kubelet: Kubelet, plugin: NriPlugin) -> None:
    plugin.on["UpdatePodSandbox"] = Once()
    pod = kubelet.pod()
    request = cri.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod.id, resources=cri.LinuxContainerResources(cpu_shares=300)
    )
    with pytest.raises(grpc.RpcError, match="10-tester refuses UpdatePodSandbox: not today"):
        kubelet.runtime.UpdatePodSandboxResources(request)
    kubelet.runtime.UpdatePodSandboxResources(request)
    assert plugin.methods(pod.id).count("PostUpdatePodSandbox") == 1


@pytest.mark.parametrize(
    "method", ["PostCreateContainer", "PostStartContainer", "StopContainer", "RemoveContainer", "StopPodSandbox"]
)
def test_what_has_happened_cannot_be_refused(kubelet: Kubelet, plugin: NriPlugin, method: str) -> None:
    plugin.on[method] = Once()
    pod = kubelet.pod()
    container = pod.run("/bin/sleep", "1000")
    container.stop()
    container.remove()
    pod.stop()
    pod.remove()
    assert plugin.methods().count(method) == 1


# ---- who sees what while a plugin thinks ----


class Gate:
    """A handler that is held."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.identity = ""

    def __call__(self, request: nri.CreateContainerRequest) -> None:
        self.identity = request.container.id if hasattr(request, "container") else request.pod.id
        self.reached.set()
        assert self.open.wait(30)


def test_nothing_shows_a_pod_whose_hook_has_not_answered(slow: Kubelet) -> None:
    gate = Gate()
    with NriPlugin(slow.daemon.nri_socket, on={"RunPodSandbox": gate}) as plugin:
        events = slow.runtime.GetContainerEvents(cri.GetEventsRequest())
        made: list[str] = []
        thread = threading.Thread(target=lambda: made.append(slow.pod().id))
        thread.start()
        assert gate.reached.wait(30)
        assert listed(slow) == set()
        with pytest.raises(grpc.RpcError, match="is being made"):
            slow.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=gate.identity))
        config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="x"), image=cri.ImageSpec(image=slow.image))
        with pytest.raises(grpc.RpcError, match="is being made"):
            slow.runtime.CreateContainer(cri.CreateContainerRequest(pod_sandbox_id=gate.identity, config=config))
        gate.open.set()
        thread.join(30)
        assert made == [gate.identity]
        assert next(events).container_id == gate.identity
        events.cancel()
        assert plugin.methods(gate.identity) == ["RunPodSandbox"]


def test_nothing_shows_a_container_whose_hook_has_not_answered(slow: Kubelet) -> None:
    gate = Gate()
    with NriPlugin(slow.daemon.nri_socket, on={"CreateContainer": gate}):
        pod = slow.pod()
        made: list[str] = []
        thread = threading.Thread(target=lambda: made.append(pod.create("/bin/true").id))
        thread.start()
        assert gate.reached.wait(30)
        assert listed(slow) == {pod.id}
        assert (
            pod.kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id)).containers_statuses
            == []
        )
        gate.open.set()
        thread.join(30)
        assert made == [gate.identity]
        assert listed(slow) == {pod.id, gate.identity}


def test_a_stopping_pod_is_there_and_its_containers_have_ended(slow: Kubelet) -> None:
    gate = Gate()
    with NriPlugin(slow.daemon.nri_socket, on={"StopPodSandbox": gate}):
        pod = slow.pod()
        container = pod.run("/bin/sleep", "1000")
        thread = threading.Thread(target=pod.stop)
        thread.start()
        assert gate.reached.wait(30)
        assert container.status().state == cri.CONTAINER_EXITED
        assert pod.status().id == pod.id
        gate.open.set()
        thread.join(30)


@pytest.fixture(scope="module")
def slow_daemon() -> Iterator[Daemon]:
    """One whose plugins have time."""
    running = Daemon(nri="plugin_request_timeout = 30.0")
    running.start()
    yield running
    running.destroy()


@pytest.fixture
def slow(slow_daemon: Daemon, rootfs: object) -> Iterator[Kubelet]:
    from proto import admin_pb2 as admin  # noqa: PLC0415

    assert slow_daemon.client is not None
    request = admin.AddRootfsRequest(name="localhost/busybox:test", directory=str(rootfs))
    yield Kubelet(slow_daemon, slow_daemon.client.admin.AddRootfs(request).image_id)
    slow_daemon.remove_all()
    assert slow_daemon.leftovers() == []
