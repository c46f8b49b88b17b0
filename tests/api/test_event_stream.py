"""GetContainerEvents, and lists in parts."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from proto import api_pb2 as cri
from runtime.records import ContainerRecord, SandboxRecord
from runtime.store.database import Store
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

LIVES = int(os.environ.get("CRISP_LIVES", "200"))
"""Fast container lives; `make soak` has 2000."""
EXITED = 20_000


class Listener:
    """Collects events in a thread."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.call = kubelet.runtime.GetContainerEvents(cri.GetEventsRequest())
        self.events: list[cri.ContainerEventResponse] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            for event in self.call:
                self.events.append(event)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.CANCELLED

    def of(self, subject: str) -> list[cri.ContainerEventResponse]:
        return [event for event in self.events if event.container_id == subject]

    def kinds(self, subject: str) -> list[str]:
        return [cri.ContainerEventType.Name(e.container_event_type).split("_")[1] for e in self.of(subject)]


@contextmanager
def listening(kubelet: Kubelet) -> Iterator[Listener]:
    listener = Listener(kubelet)
    listener.thread.start()
    # Only what happens after the subscription is heard of: so make things happen until it is.
    wait_until(lambda: kubelet.pod().id in {event.container_id for event in listener.events} or bool(listener.events))
    try:
        yield listener
    finally:
        listener.call.cancel()
        listener.thread.join()


def test_a_pods_life(kubelet: Kubelet) -> None:
    with listening(kubelet) as listener:
        pod = kubelet.pod()
        container = pod.shell("exit 3")
        container.remove()
        pod.stop()
        pod.remove()
        every = ["CREATED", "STARTED", "STOPPED", "DELETED"]
        wait_until(lambda: listener.kinds(pod.id) == every and listener.kinds(container.id) == every)
        stopped, deleted = listener.of(container.id)[2:]
        assert stopped.pod_sandbox_status.metadata == pod.config.metadata
        assert [(s.id, s.state, s.exit_code) for s in stopped.containers_statuses] == [
            (container.id, cri.CONTAINER_EXITED, 3)
        ]
        assert list(deleted.containers_statuses) == []
        assert listener.of(pod.id)[2].pod_sandbox_status.state == cri.SANDBOX_NOTREADY
        stamps = [event.created_at for event in listener.events]
        assert stamps == sorted(set(stamps))


def test_stamps_and_status_are_of_one_clock(kubelet: Kubelet) -> None:
    with listening(kubelet) as listener:
        pod = kubelet.pod()
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id)
        for _ in range(3):
            container = pod.shell("true")
            after = kubelet.runtime.PodSandboxStatus(request)
            wait_until(lambda c=container: listener.kinds(c.id) == ["CREATED", "STARTED", "STOPPED"])
            assert listener.of(container.id)[-1].created_at < after.timestamp


def test_fast_lives(kubelet: Kubelet) -> None:
    """Each life is told whole and in order, though another client reads nothing at all."""
    deaf = kubelet.runtime.GetContainerEvents(cri.GetEventsRequest())
    with listening(kubelet) as listener:
        pods = [kubelet.pod() for _ in range(4)]

        def lives(number: int) -> list[str]:
            ids = []
            for _ in range(LIVES // len(pods)):
                container = pods[number].shell("true")
                container.remove()
                ids.append(container.id)
            return ids

        with ThreadPoolExecutor(len(pods)) as pool:
            ids = [key for some in pool.map(lives, range(len(pods))) for key in some]
        wait_until(lambda: all(len(listener.of(key)) == 4 for key in ids[-8:]))
        for key in ids:
            assert listener.kinds(key) == ["CREATED", "STARTED", "STOPPED", "DELETED"]
    deaf.cancel()


async def fill(database: Path, cgroup: str) -> None:
    """Records of a node that has seen much: 20 000 exited containers with the labels that a kubelet sets."""
    store = Store(database)
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="p", uid="u", namespace="n"))
    parent = f"{cgroup}/gone"
    sandbox = SandboxRecord(
        id="5" * 64, config=config, handler="", created_at=1, ready_at=2, stopped_at=3, cgroup_parent=parent, cgroup=parent
    )
    await store.sandboxes.put(sandbox.id, sandbox.document())
    record = ContainerRecord(
        id="",
        sandbox_id=sandbox.id,
        config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"), image=cri.ImageSpec(image="localhost/x:1")),
        image_id="sha256:" + "0" * 64,
        log_path="/var/log/pods/x",
        created_at=10,
        cgroup=f"{parent}/gone",
        made_at=11,
        started_at=12,
        finished_at=13,
    )
    for number in range(8):
        record.config.annotations[f"io.kubernetes.container.{number}"] = "x" * 100
    document = record.document()
    keys = [f"{number:064x}" for number in range(EXITED)]
    await asyncio.gather(*(store.containers.put(key, {**document, "id": key}) for key in keys))
    store.close()


def test_more_exited_containers_than_one_message_holds() -> None:
    daemon = Daemon()
    asyncio.run(fill(daemon.root / "state.db", daemon.cgroup_parent.strip("/")))
    try:
        daemon.start()
        assert daemon.client is not None
        runtime = daemon.client.runtime
        parts = list(runtime.StreamContainers(cri.StreamContainersRequest()))
        assert sum(len(part.containers) for part in parts) == EXITED
        assert len({c.id for part in parts for c in part.containers}) == EXITED
        assert sum(part.ByteSize() for part in parts) > 16 << 20, "too much for one message"
        assert max(part.ByteSize() for part in parts) < 2 << 20
        [part] = runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest())
        assert [sandbox.id for sandbox in part.pod_sandboxes] == ["5" * 64]
        assert list(runtime.StreamContainerStats(cri.StreamContainerStatsRequest())) == []
        assert list(runtime.StreamPodSandboxMetrics(cri.StreamPodSandboxMetricsRequest())) == []
        running = cri.StreamContainersRequest()
        running.filter.state.state = cri.CONTAINER_RUNNING
        assert list(runtime.StreamContainers(running)) == []
    finally:
        daemon.kill()
        daemon.destroy()


def test_images_in_parts(kubelet: Kubelet) -> None:
    parts = kubelet.images.StreamImages(cri.StreamImagesRequest())
    listed = kubelet.images.ListImages(cri.ListImagesRequest()).images
    assert [image.id for part in parts for image in part.images] == [image.id for image in listed]
