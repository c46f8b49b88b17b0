"""The clock jumps, forwards by a year and back by ten: times keep their order, and nothing that waits is cut short.

The daemon's own clock is moved (tests/harness/moved_clock); shims and the kernel keep the real one, so that daemon and shims
disagree as much as they ever can. That nothing waits by the wall clock is seen in the source: test_no_wall_clock_in_waits.
"""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.harness.daemon import ROOT, Daemon
from tests.harness.kubelet import Kubelet
from tests.images.image_builder import Layout, Member, busybox
from tests.images.registry_server import Registry

YEAR = 365 * 24 * 3600
JUMPS = (0, YEAR, -10 * YEAR, 0)

STAMPS = {
    "runtime/records.py": "creation times, which strictly increase",
    "runtime/pods/layer_usage.py": "timestamps of statistics",
    "runtime/statistics/stats.py": "timestamps of statistics",
    "runtime/api/rpc_images.py": "timestamps of statistics",
    "runtime/statistics/metric_set.py": "timestamps of statistics",
    "runtime/telemetry/tracing.py": "times of spans",
    "runtime/checkpoints/checkpoint_container.py": "the time of a checkpoint",
    "runtime/cli/ps.py": "ages, for people",
    "runtime/cli/support_bundle.py": "a file's name",
    "imagesvc/build/commit.py": "the time of an image",
    "imagesvc/worker/pack.py": "times of files",
    "imagesvc/transfer/progress.py": "ages, for people",
    "imagesvc/store/images.py": "when an image came, which strictly increases among those that share a name",
    "imagesvc/store/content.py": "the age of partial downloads, which are older than the process",
    "shim/container.py": "start and end of a container",
    "shim/stdio.py": "time stamps of log lines",
}
"""Who reads the wall clock, and for what."""


def test_no_wall_clock_in_waits() -> None:
    """Every reader of the wall clock is known: timeouts and waits are by the monotonic clock."""
    readers = set()
    for room in ("proto", "kernel", "shim", "imagesvc", "runtime"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns", "datetime.now"):
                    readers.add(str(path.relative_to(ROOT)))
    assert readers <= STAMPS.keys(), "say what it is for"


class Moved:
    """A kubelet on a daemon whose clock can be moved."""

    def __init__(self, daemon: Daemon, rootfs: Path) -> None:
        self.offset = daemon.directory / "offset"
        self.set(0)
        hook = ROOT / "tests/harness/moved_clock"
        daemon.start(PYTHONPATH=str(hook), CRISP_TEST_CLOCK=str(self.offset))
        assert daemon.client is not None
        request = admin.AddRootfsRequest(name="localhost/busybox:test", directory=str(rootfs))
        self.kubelet = Kubelet(daemon, daemon.client.admin.AddRootfs(request).image_id)

    def set(self, seconds: int) -> None:
        self.offset.write_text(str(seconds))


@pytest.fixture
def moved(rootfs: Path) -> Iterator[Moved]:
    daemon = Daemon()
    yield Moved(daemon, rootfs)
    daemon.remove_all()
    left = daemon.leftovers()
    daemon.destroy()
    assert left == []


@pytest.mark.root
def test_order_of_times(moved: Moved) -> None:
    kubelet = moved.kubelet
    events: list[cri.ContainerEventResponse] = []
    stream = kubelet.runtime.GetContainerEvents(cri.GetEventsRequest())
    listener = threading.Thread(target=collect, args=(stream, events))
    listener.start()
    created, stamps = [], []
    for jump in JUMPS:
        moved.set(jump)
        pod = kubelet.pod()
        created.append(pod.status().created_at)
        running = pod.run("/bin/sleep", "100")
        moved.set(jump - YEAR)
        ended = pod.shell("exit 3").status()
        running.stop()
        for status in (running.status(), ended):
            assert status.created_at < status.started_at < status.finished_at
            created.append(status.created_at)
        reply = kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
        stamps.append(reply.timestamp)
        pod.remove()
    stream.cancel()
    listener.join()
    assert created == sorted(set(created))
    assert stamps == sorted(set(stamps))
    told = [event.created_at for event in events]
    assert told == sorted(set(told))
    assert len(told) >= len(JUMPS) * 8


def collect(stream: object, events: list[cri.ContainerEventResponse]) -> None:
    assert hasattr(stream, "__iter__")
    try:
        for event in stream:
            events.append(event)
    except grpc.RpcError:
        return


@pytest.mark.root
def test_waits_are_as_long_as_they_were_asked_for(moved: Moved) -> None:
    """A clock that jumps while they last neither ends nor extends them."""
    kubelet = moved.kubelet
    container = kubelet.pod().run_trap("", "TERM")
    for jump in (YEAR, -YEAR):
        moved.set(0)
        begin = time.monotonic()
        call = kubelet.runtime.ExecSync.future(
            cri.ExecSyncRequest(container_id=container.id, cmd=["/bin/sleep", "60"], timeout=2)
        )
        time.sleep(0.5)
        moved.set(jump)
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 1.9 < time.monotonic() - begin < 30
    begin = time.monotonic()
    stop = kubelet.runtime.StopContainer.future(cri.StopContainerRequest(container_id=container.id, timeout=2))
    time.sleep(0.5)
    moved.set(YEAR)
    stop.result()
    assert 1.9 < time.monotonic() - begin < 30
    assert container.status().exit_code == 137


@pytest.mark.root
def test_tag_that_moves_after_the_clock_was_set_back(moved: Moved, tmp_path: Path) -> None:
    """The tag is the newest pull's, also if that looks older; and so it is for the next daemon."""
    registry = Registry(tmp_path / "registry")
    try:
        layout = Layout(tmp_path / "layout")
        tag = f"{registry.host}/clock/app:latest"
        ids = []
        for jump in (YEAR, 0):
            moved.set(jump)
            layout.image(tag, [busybox(Member(f"file{jump}", b"x"))])
            layout.push(tag, tag)
            request = cri.PullImageRequest(image=cri.ImageSpec(image=tag))
            ids.append(moved.kubelet.images.PullImage(request).image_ref)
        for restarted in (False, True):
            if restarted:
                moved.kubelet.daemon.kill()
                moved.kubelet.daemon.start()
            status = moved.kubelet.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=tag)))
            assert status.image.id == ids[1] != ids[0]
    finally:
        registry.close()
