"""A sandbox as cAdvisor sees it, where the moment is against it: no thread to be had, a pod on its way out."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from kernel import cgroups
from proto import api_pb2 as cri
from proto import cadvisor_pb2 as wire
from runtime.network.netns import Witness
from runtime.pods import sandbox_group
from runtime.pods.objects import Sandbox
from runtime.records import SandboxRecord
from runtime.telemetry import cadvisor

if TYPE_CHECKING:
    from runtime.pods.node import Node

pytestmark = pytest.mark.root


@pytest.fixture
def node() -> Iterator[Node]:
    """As much of it as a sandbox's group and thread need; every pod's network is the test's own."""
    with ThreadPoolExecutor(2) as blocking:
        yield cast(
            "Node",
            SimpleNamespace(
                blocking=blocking,
                containers={},
                sandboxes={},
                looked_at=True,
                paths=SimpleNamespace(namespace=lambda *_: Path("/proc/self/ns/net")),
                host=SimpleNamespace(hierarchies=cgroups.detect()),
            ),
        )


def add(node: Node, **facts: Any) -> Sandbox:
    record = SandboxRecord(secrets.token_hex(32), cri.PodSandboxConfig(), "", 1, **facts)
    sandbox = node.sandboxes[record.id] = Sandbox(record)
    return sandbox


def witnesses() -> int:
    return sum(thread.name == "witness" for thread in threading.enumerate())


class Aborted(Exception):
    """What ends a call in place of gRPC."""


async def ask(node: Node, sandbox: Sandbox) -> wire.Process:
    """As cAdvisor asks for the task. Raises Aborted with the code."""

    async def abort(code: grpc.StatusCode, _message: str) -> None:
        raise Aborted(code)

    server = cadvisor.Cadvisor(node, "/nonexistent")
    request = wire.GetTaskRequest(container_id=sandbox.record.id)
    reply = await server._get_task(request, cast("Any", SimpleNamespace(abort=abort)))
    return reply.process


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError(24, "Too many open files")])
async def test_a_thread_that_could_not_be_had_is_tried_again(
    node: Node, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """And until then cAdvisor is not told that the sandbox is stopped, after which it would not ask again."""
    sandbox = add(node, ready_at=1)
    failing = True

    def enter(path: str) -> Witness:
        if failing:
            raise error
        return Witness(path)

    monkeypatch.setattr(sandbox_group, "Witness", enter)
    with pytest.raises(Aborted, match="NOT_FOUND"):
        await ask(node, sandbox)
    failing = False
    task = await ask(node, sandbox)
    assert task.status == wire.RUNNING
    assert os.path.exists(f"/proc/self/task/{task.pid}")
    await sandbox_group.end(node, sandbox)
    assert not witnesses()


async def test_a_pod_that_has_no_thread_ends_all_the_same(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for just then."""
    sandbox = add(node, ready_at=1)
    gate = threading.Event()

    def enter(_path: str) -> Witness:
        gate.wait()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(sandbox_group, "Witness", enter)
    asking = asyncio.create_task(sandbox_group.process(node, sandbox))
    await asyncio.sleep(0)
    ending = asyncio.create_task(sandbox_group.end(node, sandbox))
    await asyncio.sleep(0)
    gate.set()
    assert await asking == 0
    await ending


async def test_nothing_enters_a_network_that_is_being_given_back(node: Node) -> None:
    """Of a pod that did not become ready: no time says that it is stopped, and its cgroup is there for a while yet."""
    sandbox = add(node)
    assert await sandbox_group.process(node, sandbox)
    assert witnesses() == 1
    await sandbox_group.end(node, sandbox)
    assert await sandbox_group.process(node, sandbox) == 0
    assert not witnesses()


async def test_pods_that_go_meanwhile_do_not_end_the_renewal(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first look, and at each later one."""
    pods = [add(node, ready_at=1) for _ in range(4)]
    renewed: list[Sandbox] = []

    async def renew(node: Node, sandbox: Sandbox) -> None:
        renewed.append(sandbox)
        node.sandboxes.pop(pods[len(renewed) % 4].record.id, None)

    monkeypatch.setattr(sandbox_group, "renew", renew)
    monkeypatch.setattr(cadvisor, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(cadvisor, "RENEWED_AT", frozenset((1,)))
    renewing = asyncio.create_task(cadvisor.Cadvisor(node, "/nonexistent")._follow())
    while len(renewed) < 4 and not renewing.done():
        await asyncio.sleep(0)
    for pod in pods:
        node.sandboxes[pod.record.id] = pod
    while len(renewed) < 5 and not renewing.done():
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not renewing.done()
    renewing.cancel()
    await asyncio.gather(renewing, return_exceptions=True)


@pytest.fixture
def parent() -> Iterator[cgroups.Group]:
    group = cgroups.detect().group(f"crisp-test-{secrets.token_hex(4)}")
    group.create()
    yield group
    assert group.remove()


def test_a_parents_cpus_can_still_be_narrowed(node: Node, parent: cgroups.Group) -> None:
    """A cpuset of version 1 must have all the CPUs of those below it: an empty group needs none."""
    sandbox = add(node, ready_at=1, cgroup_parent=f"/{parent.path}")
    sandbox_group.make(node, sandbox.record)
    below = parent.hierarchies.group(f"{parent.path}/{sandbox.record.id}")
    assert below.exists()
    cpus = Path(parent.directory("cpuset"), "cpuset.cpus")
    if parent.hierarchies.mode is not cgroups.Mode.V2:
        cpus.write_text(cpus.read_text().strip().replace("-", ",").split(",")[0])
        assert not Path(below.directory("cpuset"), "cpuset.cpus").read_text().strip()


def test_a_group_that_cannot_be_made_is_no_fault_of_the_pod(node: Node, parent: cgroups.Group) -> None:
    """Its parent is no directory, for one."""
    sandbox = add(node, ready_at=1, cgroup_parent=f"/{parent.path}/cgroup.procs")
    sandbox_group.make(node, sandbox.record)
    sandbox_group.remove(node, sandbox.record)


async def test_a_program_that_comes_in_between_keeps_the_place(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look whether somebody listens, and listening."""
    path = tmp_path / "containerd.sock"
    with socket.socket(socket.AF_UNIX) as other:
        monkeypatch.setattr(cadvisor.sockets, "make_room", other.bind)
        server = cadvisor.Cadvisor(node, str(path))
        await server.start()
        inode = os.lstat(path).st_ino
        other.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            other.accept()[0].close()
        await server.stop()
        assert os.listdir(tmp_path) == ["containerd.sock"]
        assert os.lstat(path).st_ino == inode
