"""What NRI plugins want of containers that they are not asked about: updates and evictions, in replies and unasked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proto import api_pb2 as cri
from proto import nri_pb2 as nri
from tests.harness import pure_v2
from tests.harness.kubelet import Container, Kubelet, wait_until
from tests.harness.nri_plugin import NriPlugin

pytestmark = pytest.mark.root


@pytest.fixture
def plugin(kubelet: Kubelet) -> Iterator[NriPlugin]:
    if pure_v2.missing_controllers("cpu"):
        pytest.skip("no cpu controller here")
    with NriPlugin(kubelet.daemon.nri_socket) as plugin:
        yield plugin


def shares(identity: str, number: int, *, may_fail: bool = False) -> nri.ContainerUpdate:
    update = nri.ContainerUpdate(container_id=identity, ignore_failure=may_fail)
    update.linux.resources.cpu.shares.value = number
    return update


def has(container: Container, number: int) -> bool:
    return container.status().resources.linux.cpu_shares == number


def test_unasked(kubelet: Kubelet, plugin: NriPlugin) -> None:
    pod = kubelet.pod()
    container, ended = pod.run("/bin/sleep", "1000"), pod.shell("exit 0")
    none = "0" * 64
    wanted = (shares(container.id, 333), shares(ended.id, 5), shares(none, 5), shares(none, 5, may_fail=True))
    assert plugin.update(*wanted) == [ended.id, none]
    assert has(container, 333)
    assert "UpdateContainer" not in plugin.methods(), "who wants it knows it"


def test_part_of_an_id_is_nobodys(kubelet: Kubelet, plugin: NriPlugin) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    part = container.id[:12]
    assert plugin.update(shares(part, 333), evict=(part,)) == [part]
    log = kubelet.daemon.log_path
    wait_until(lambda: f'no container with id {part}"' in log.read_text() and "eviction has failed" in log.read_text())
    assert has(container, 0)
    assert container.status().state == cri.CONTAINER_RUNNING


def test_what_no_kernel_takes_fails(kubelet: Kubelet, plugin: NriPlugin) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    assert plugin.update(shares(container.id, 1)) == [container.id]
    assert has(container, 0)


def test_of_others_in_replies(kubelet: Kubelet, plugin: NriPlugin) -> None:
    pod = kubelet.pod()
    old, other = pod.run("/bin/sleep", "1000"), pod.run("/bin/sleep", "1000")
    plugin.on["CreateContainer"] = lambda _: nri.CreateContainerResponse(update=[shares(old.id, 201)])
    new = pod.run("/bin/sleep", "1000")
    assert has(old, 201)
    plugin.on["UpdateContainer"] = lambda _: nri.UpdateContainerResponse(update=[shares(old.id, 202)])
    new.update(cpu_shares=512)
    assert has(old, 202)
    assert has(new, 512)
    plugin.on["StopContainer"] = lambda _: nri.StopContainerResponse(update=[shares(old.id, 203)])
    other.stop()
    assert has(old, 203)


def test_of_the_container_that_is_updated(kubelet: Kubelet, plugin: NriPlugin) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    plugin.on["UpdateContainer"] = lambda r: nri.UpdateContainerResponse(
        update=[shares(container.id, r.linux_resources.cpu.shares.value * 2)]
    )
    container.update(cpu_shares=512)
    assert has(container, 1024)
    [after] = [a.request.container for a in plugin.asked if a.method == "PostUpdateContainer"]
    assert after.linux.resources.cpu.shares.value == 1024


def test_when_it_is_synchronized(kubelet: Kubelet, plugin: NriPlugin) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    on = {"Synchronize": lambda _: nri.SynchronizeResponse(update=[shares(container.id, 444)])}
    with NriPlugin(kubelet.daemon.nri_socket, "late", on=on):
        wait_until(lambda: has(container, 444))


def test_two_containers_update_each_other(kubelet: Kubelet, plugin: NriPlugin) -> None:
    """Neither waits for the other's call."""
    pod = kubelet.pod()
    one, two = pod.run("/bin/sleep", "1000"), pod.run("/bin/sleep", "1000")
    others = {one.id: two.id, two.id: one.id}
    plugin.on["UpdateContainer"] = lambda r: nri.UpdateContainerResponse(update=[shares(others[r.container.id], 700)])
    for _ in range(10):
        futures = [
            kubelet.runtime.UpdateContainerResources.future(
                cri.UpdateContainerResourcesRequest(
                    container_id=container.id, linux=cri.LinuxContainerResources(cpu_shares=600)
                )
            )
            for container in (one, two)
        ]
        for future in futures:
            future.result(30)


def test_a_plugin_updates_while_it_is_asked(kubelet: Kubelet, plugin: NriPlugin) -> None:
    """Its call is served though its answer is waited for."""
    pod = kubelet.pod()
    old = pod.run("/bin/sleep", "1000")
    failed: list[list[str]] = []
    plugin.on["CreateContainer"] = lambda _: failed.append(plugin.update(shares(old.id, 555)))
    pod.create("/bin/true")
    assert has(old, 555)
    assert failed == [[]]


@pytest.mark.parametrize("how", ["create", "update", "unasked"])
def test_evictions(kubelet: Kubelet, plugin: NriPlugin, how: str) -> None:
    pod = kubelet.pod()
    victim, other = pod.run("/bin/sleep", "1000"), pod.run("/bin/sleep", "1000")
    eviction = nri.ContainerEviction(container_id=victim.id, reason="no room")
    match how:
        case "create":
            plugin.on["CreateContainer"] = lambda _: nri.CreateContainerResponse(evict=[eviction])
            pod.create("/bin/true")
        case "update":
            plugin.on["UpdateContainer"] = lambda _: nri.UpdateContainerResponse(evict=[eviction])
            other.update(cpu_shares=512)
        case _:
            plugin.update(evict=(victim.id,))
    wait_until(lambda: victim.status().state == cri.CONTAINER_EXITED)
    plugin.wait_for("StopContainer")
    assert plugin.methods(victim.id).count("StopContainer") == 1
    assert other.status().state == cri.CONTAINER_RUNNING


def test_an_update_that_comes_with_the_end_leaves_no_record(kubelet: Kubelet, plugin: NriPlugin) -> None:
    """It must not bring back a container that is removed."""
    pod = kubelet.pod()
    for _ in range(10):
        container = pod.run("/bin/sleep", "1000")
        removal = kubelet.runtime.RemoveContainer.future(cri.RemoveContainerRequest(container_id=container.id))
        while not removal.done():
            plugin.update(shares(container.id, 300, may_fail=True))
        removal.result()
    kubelet.daemon.kill()
    kubelet.daemon.start()
    assert list(kubelet.runtime.ListContainers(cri.ListContainersRequest()).containers) == []
