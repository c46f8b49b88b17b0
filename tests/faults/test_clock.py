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

from proto import api_pb2 as cri
from tests.harness.daemon import ROOT, Daemon
from tests.harness.kubelet import Kubelet
from tests.images.image_builder import Layout, Member, busybox
from tests.images.registry_server import Registry

YEAR = 365 * 24 * 3600
JUMPS = (0, YEAR, -10 * YEAR, 0)

STAMPS = {
    "runtime/records.py": "creation times and events, which strictly increase within a pod",
    "runtime/pods/layer_usage.py": "timestamps of statistics",
    "runtime/statistics/stats.py": "timestamps of statistics",
    "runtime/api/rpc_images.py": "timestamps of statistics",
    "runtime/statistics/metric_set.py": "timestamps of statistics",
    "runtime/telemetry/tracing.py": "times of spans",
    "runtime/checkpoints/checkpoint_container.py": "the time of a checkpoint",
    "runtime/cli/ps.py": "ages, for people",
    "runtime/cli/images.py": "ages, for people",
    "runtime/build/jobs.py": "times of files that a Containerfile has the text of",
    "runtime/cli/pods.py": "ages, for people",
    "runtime/cli/logs.py": "how long ago a line of a log was, which has the wall clock's time",
    "runtime/cli/support_bundle.py": "a file's name",
    "imagesvc/build/commit.py": "the time of an image",
    "imagesvc/worker/pack.py": "times of files",
    "imagesvc/worker/layer_image.py": "times of directories that an archive leaves out",
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
        self.environment = {"PYTHONPATH": str(hook), "CRISP_TEST_CLOCK": str(self.offset)}
        daemon.start(**self.environment)
        self.kubelet = Kubelet.on(daemon, rootfs)

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
def test_order_within_a_pod(moved: Moved) -> None:
    """However the clock jumps: a pod's sandboxes, a container's attempts and all that is told of them are in order."""
    kubelet = moved.kubelet
    events: list[cri.ContainerEventResponse] = []
    stream = kubelet.runtime.GetContainerEvents(cri.GetEventsRequest())
    listener = threading.Thread(target=collect, args=(stream, events))
    listener.start()
    sandboxes, containers, stamps = [], [], []
    config = kubelet.pod_config()
    for attempt, jump in enumerate(JUMPS):
        moved.set(jump)
        config.metadata.attempt = attempt
        pod = kubelet.pod(config)
        sandboxes.append(pod.status().created_at)
        for again in range(2):
            wanted = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c", attempt=2 * attempt + again))
            moved.set(jump - again * YEAR)
            status = pod.shell("exit 3", wanted).status()
            assert 0 < status.started_at <= status.finished_at
            containers.append(status.created_at)
        reply = kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
        stamps.append(reply.timestamp)
        if attempt % 2:
            moved.kubelet.daemon.kill()
            moved.kubelet.daemon.start(**moved.environment)
        pod.remove()
    stream.cancel()
    listener.join()
    assert sandboxes == sorted(set(sandboxes))
    assert containers == sorted(set(containers))
    assert stamps == sorted(set(stamps))
    told = [event.created_at for event in events]
    assert told == sorted(set(told))
    assert told


@pytest.mark.root
def test_a_clock_that_was_once_ahead_moves_no_later_time(moved: Moved) -> None:
    """Other pods, and starts and ends in the same one, are as the clock is now; a life is as long as it was."""
    kubelet = moved.kubelet
    moved.set(YEAR)
    early = kubelet.pod()
    early.shell("exit 0")
    for restarted in (False, True):
        moved.set(0)
        if restarted:
            kubelet.daemon.kill()
            kubelet.daemon.start(**moved.environment)
        before = time.time_ns()
        late = kubelet.pod()
        same, other = early.shell("sleep 0.3").status(), late.shell("sleep 0.3").status()
        after = time.time_ns()
        assert before <= late.status().created_at <= other.created_at <= other.started_at
        for status in (same, other):
            assert before <= status.started_at < status.finished_at <= after
            assert status.finished_at - status.started_at >= 300_000_000
        late.remove()


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
