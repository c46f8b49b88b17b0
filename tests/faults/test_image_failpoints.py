"""The daemon is killed at every named step of pulls, imports and image removals; a retry of the client succeeds.

Afterwards there is a whole image or none, what containers use is still there, and nothing else is on the disk.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from kernel.failpoints import NAMES
from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until
from tests.images.image_builder import Layout, Member, busybox, directory, tar
from tests.images.registry_server import Registry

pytestmark = pytest.mark.root


@dataclass
class Source:
    """An image of two layers, in a registry and as a layout."""

    reference: str
    layout: Path


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    base = tmp_path_factory.mktemp("source")
    registry = Registry(base / "registry")
    layout = Layout(base / "layout")
    reference = f"{registry.host}/faults/app:1"
    data = [Member(f"data/{n}", os.urandom(10_000)) for n in range(50)]
    layout.image(reference, [busybox(), tar([directory("./"), directory("data/"), *data])])
    layout.push(reference, reference)
    yield Source(reference, layout.path)
    registry.close()


def pull(kubelet: Kubelet, source: Source) -> None:
    kubelet.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=source.reference)))


def import_(kubelet: Kubelet, source: Source) -> None:
    kubelet.client.admin.ImportImages(admin.ImportImagesRequest(path=str(source.layout)))


def remove(kubelet: Kubelet, source: Source) -> None:
    kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=source.reference)))


STEPS = [
    *((pull, name) for name in ("image.unpacked", "image.published", "image.recorded")),
    *((import_, name) for name in ("image.opened", "image.unpacked", "image.published", "image.recorded")),
    (remove, "image.removed"),
]


def test_every_failpoint_is_visited() -> None:
    assert {name for _, name in STEPS} == {name for name in NAMES if name.startswith("image.")}


def present(kubelet: Kubelet, source: Source) -> bool:
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=source.reference))
    return bool(kubelet.images.ImageStatus(request).image.id)


def stored(kubelet: Kubelet) -> list[str]:
    """Layers, blobs and unfinished things on the disk."""
    root = kubelet.daemon.root
    return [str(path.relative_to(root)) for part in ("layers", "blobs/sha256", "ingest") for path in (root / part).iterdir()]


@pytest.mark.parametrize(("operation", "failpoint"), STEPS)
def test_crash_and_retry(
    kubelet: Kubelet, source: Source, operation: Callable[[Kubelet, Source], None], failpoint: str
) -> None:
    before = sorted(stored(kubelet))
    if operation is remove:
        pull(kubelet, source)
    kubelet.daemon.stop()
    kubelet.daemon.start(failpoint)
    with pytest.raises(grpc.RpcError):
        operation(kubelet, source)
    assert kubelet.daemon.wait_death() == -signal.SIGKILL
    kubelet.daemon.start()
    report = kubelet.client.admin.VerifyImages(admin.VerifyImagesRequest())
    assert (list(report.bad_blobs), list(report.bad_layers)) == ([], [])
    if not present(kubelet, source):
        wait_until(lambda: sorted(name for name in stored(kubelet) if not name.startswith("ingest/")) == before)
    operation(kubelet, source)
    assert present(kubelet, source) is (operation is not remove)
    if operation is not remove:
        image = cri.ContainerConfig(image=cri.ImageSpec(image=source.reference))
        container = kubelet.pod().run("/bin/ls", "/data", config=image)
        assert container.wait().exit_code == 0
        assert len(container.output().split()) == 50
        container.pod.remove()
        remove(kubelet, source)
    wait_until(lambda: sorted(stored(kubelet)) == before)


def test_image_of_a_container_is_removed_and_the_daemon_dies(kubelet: Kubelet, source: Source) -> None:
    """The container keeps its layers; they go with it."""
    before = sorted(stored(kubelet))
    pull(kubelet, source)
    config = cri.ContainerConfig(image=cri.ImageSpec(image=source.reference))
    container = kubelet.pod().run("/bin/sleep", "100", config=config)
    kubelet.daemon.stop()
    kubelet.daemon.start("image.removed")
    with pytest.raises(grpc.RpcError):
        remove(kubelet, source)
    kubelet.daemon.wait_death()
    kubelet.daemon.start()
    assert not present(kubelet, source)
    assert len(container.sh("ls /data").split()) == 50
    container.pod.remove()
    wait_until(lambda: sorted(stored(kubelet)) == before)
