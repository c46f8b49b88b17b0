"""What `crisp build` has of the daemon: a lease, images lent as trees, commits, and pods that no kubelet sees."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from kernel import mounts
from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from runtime.build.session import Session
from runtime.client import CallError, Client
from tests.harness.kubelet import Kubelet, Pod
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

BUSYBOX = "localhost/busybox:test"


@contextmanager
def session(kubelet: Kubelet, epoch: int | None = None) -> Iterator[Session]:
    with Client(kubelet.daemon.socket) as client, Session(client, epoch) as begun:
        yield begun
    wait_until(lambda: not os.path.exists(begun.scratch))


@pytest.fixture(autouse=True)
def no_images_stay(kubelet: Kubelet) -> Iterator[None]:
    yield
    kubelet.client.admin.PruneBuildCache(admin.PruneBuildCacheRequest())
    for image in kubelet.images.ListImages(cri.ListImagesRequest()).images:
        if any("/built" in tag for tag in image.repo_tags):
            kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image.id)))


def build_pod(kubelet: Kubelet, begun: Session) -> Pod:
    config = kubelet.pod_config()
    config.labels["crisp.build"] = begun.id
    config.log_directory = f"{begun.scratch}/logs-{config.metadata.uid}"
    os.mkdir(config.log_directory)
    return kubelet.pod(config)


def labelled_pod(kubelet: Kubelet, value: str, logs: str = "") -> Pod:
    config = kubelet.pod_config()
    config.labels["crisp.build"] = value
    config.log_directory = logs or config.log_directory
    return kubelet.pod(config)


def listed(kubelet: Kubelet, **selector: str) -> tuple[set[str], set[str]]:
    """Pods and containers, as every call lists them that lists any."""
    pods = cri.PodSandboxFilter(label_selector=selector)
    containers = cri.ContainerFilter(label_selector=selector)
    runtime = kubelet.runtime
    found = {item.id for item in runtime.ListPodSandbox(cri.ListPodSandboxRequest(filter=pods)).items}
    streamed = runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest(filter=pods))
    assert {item.id for reply in streamed for item in reply.pod_sandboxes} == found
    stats = runtime.ListPodSandboxStats(
        cri.ListPodSandboxStatsRequest(filter=cri.PodSandboxStatsFilter(label_selector=selector))
    )
    assert {item.attributes.id for item in stats.stats} <= found
    inside = {item.id for item in runtime.ListContainers(cri.ListContainersRequest(filter=containers)).containers}
    streamed = runtime.StreamContainers(cri.StreamContainersRequest(filter=containers))
    assert {item.id for reply in streamed for item in reply.containers} == inside
    wanted = cri.ContainerStatsFilter(label_selector=selector)
    usage = runtime.ListContainerStats(cri.ListContainerStatsRequest(filter=wanted)).stats
    assert {item.attributes.id for item in usage} <= inside
    return found, inside


def test_a_tree_becomes_a_layer(kubelet: Kubelet) -> None:
    with session(kubelet) as begun:
        base = begun.find(BUSYBOX)
        assert base is not None
        assert base.id == kubelet.image
        with begun.mounted(base.id, writable=True) as tree:
            assert (Path(tree.directory) / "bin/busybox").stat().st_size
            Path(tree.directory, "made").write_text("by a build\n")
            Path(tree.directory, "etc/group").unlink()
            document = {**base.document, "config": {"Env": ["A=b"], "Healthcheck": {"Test": ["NONE"]}}}
            lines = [{"created_by": "first", "empty_layer": True}, {"created_by": "second"}]
            made = begun.commit(base.id, document, lines, ["localhost/built:1", "localhost/built:2"], mount=tree.id)
        again = begun.find("localhost/built:2")
        assert again is not None
        assert (again.id, again.document["config"]["Healthcheck"]) == (made, {"Test": ["NONE"]})
        told = [(line["created_by"], line.get("empty_layer", False)) for line in again.document["history"][-2:]]
        assert told == [("first", True), ("second", False)]
        with begun.mounted(made) as tree:
            assert Path(tree.directory, "made").read_text() == "by a build\n"
            assert not Path(tree.directory, "etc/group").exists()
            with pytest.raises(OSError, match="Read-only"):
                Path(tree.directory, "new").write_text("")
        wait_until(lambda: not os.path.exists(tree.directory))
        left = begun.commit(made, {"config": {"Cmd": ["/bin/true"]}}, [{"created_by": "third"}], ["localhost/built:3"])
        found = begun.find(left)
        assert found is not None
        assert len(found.document["rootfs"]["diff_ids"]) == len(again.document["rootfs"]["diff_ids"])
        assert found.document["history"][-1]["empty_layer"]
    assert (
        kubelet.pod().run("/bin/cat", "/made", config=cri.ContainerConfig(image=cri.ImageSpec(image=made))).wait().exit_code
        == 0
    )


def test_of_nothing_and_always_the_same(kubelet: Kubelet) -> None:
    """With a moment of its own, the same files make the same image."""
    made = set()
    for _ in range(2):
        with session(kubelet, epoch=1_700_000_000) as begun, begun.mounted("", writable=True) as tree:
            assert os.listdir(tree.directory) == []
            Path(tree.directory, "file").write_text("text")
            Path(tree.directory, "directory").mkdir()
            document = {"os": "linux", "architecture": "amd64", "config": {}}
            made.add(begun.commit("", document, [{"created_by": "x"}], ["localhost/built:same"], mount=tree.id))
    assert len(made) == 1


def test_a_container_becomes_a_layer_without_its_mounts(kubelet: Kubelet, tmp_path: Path) -> None:
    """What is mounted leaves nothing: neither the mount points nor the directories that were made for them."""
    (tmp_path / "file").write_text("mounted")
    with session(kubelet) as begun:
        pod = build_pod(kubelet, begun)
        config = cri.ContainerConfig()
        config.mounts.add(host_path=str(tmp_path / "file"), container_path="/run/secrets/deep/key", readonly=True)
        config.mounts.add(host_path=str(tmp_path), container_path="/new/cache")
        container = pod.run("/bin/sh", "-c", "cat /run/secrets/deep/key && echo > /new/own && rm /etc/group", config=config)
        with pytest.raises(CallError, match="is not one"):
            begun.commit(kubelet.image, {}, [{}], ["localhost/built:no"], container=kubelet.pod().run("/bin/sleep", "9").id)
        assert container.wait().exit_code == 0
        made = begun.commit(kubelet.image, {}, [{}], ["localhost/built:run"], container=container.id)
        with begun.mounted(made) as tree:
            root = Path(tree.directory)
            assert [str(path.relative_to(root)) for path in sorted((root / "new").rglob("*"))] == ["new/own"]
            assert not (root / "run").exists()
            assert not (root / "etc/group").exists()
            assert (root / "etc/passwd").exists()


def test_no_list_shows_the_pods_of_a_build(kubelet: Kubelet) -> None:
    events = kubelet.runtime.GetContainerEvents(cri.GetEventsRequest())
    with session(kubelet) as begun:
        pod = build_pod(kubelet, begun)
        container = pod.run("/bin/sleep", "1000")
        others = listed(kubelet)
        assert pod.id not in others[0]
        assert container.id not in others[1]
        assert listed(kubelet, **{"crisp.build": begun.id}) == ({pod.id}, set())
        container.stop()
        # A kubelet's housekeeping ends what it sees and does not know.
        for found in listed(kubelet)[0]:
            kubelet.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=found))
        assert pod.status().state == cri.SANDBOX_READY
    known = kubelet.pod()
    assert next(iter(events)).pod_sandbox_status.id == known.id
    events.cancel()


def test_the_label_alone_hides_nobody(kubelet: Kubelet) -> None:
    """A pod's author has a say in its labels: a pod that the kubelet did not see would be started again and again. A build's
    id is no secret of those whose Containerfile it is, so it takes the build's own directory of logs, too."""
    with session(kubelet) as begun:
        kept = [labelled_pod(kubelet, value) for value in ("mine", begun.id)]
        kept.append(labelled_pod(kubelet, begun.id, f"{begun.scratch}/../logs"))
        assert {pod.id for pod in kept} <= listed(kubelet)[0]
    assert [pod.status().state for pod in kept] == [cri.SANDBOX_READY] * 3
    with pytest.raises(grpc.RpcError, match="has ended"):
        labelled_pod(kubelet, begun.id, f"{begun.scratch}/logs")


def test_an_image_that_is_removed_meanwhile(kubelet: Kubelet) -> None:
    """The kubelet removes what no container uses when the disk is full: a build goes on with what it has found."""
    with session(kubelet) as begun:
        made = begun.commit(kubelet.image, {"config": {"Env": ["A=b"]}}, [{}], ["localhost/built:1"])
        kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=made)))
        pod = build_pod(kubelet, begun)
        config = cri.ContainerConfig(image=cri.ImageSpec(image=made))
        container = pod.run("/bin/sh", "-c", "echo $A > /x", config=config)
        assert container.wait().exit_code == 0
        again = begun.commit(made, {}, [{}], ["localhost/built:2"], container=container.id)
        with begun.mounted(again) as tree:
            assert Path(tree.directory, "x").read_text() == "b\n"


def test_what_is_asked_of_no_build(kubelet: Kubelet) -> None:
    with session(kubelet) as begun:
        for call, request in (
            ("UseBuildImage", admin.UseBuildImageRequest(build_id="build-0", reference=BUSYBOX)),
            ("MountBuildImage", admin.MountBuildImageRequest(build_id=begun.id, image_id="localhost/no:such")),
            ("CommitBuild", admin.CommitBuildRequest(build_id=begun.id, mount_id="7")),
            ("CommitBuild", admin.CommitBuildRequest(build_id=begun.id, config=b"[]")),
            ("CommitBuild", admin.CommitBuildRequest(build_id=begun.id, config=b"{")),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                getattr(kubelet.client.admin, call)(request)
            assert refused.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
        assert begun.find("localhost/no:such") is None


def test_nothing_stays_of_a_daemon_that_was_killed(kubelet: Kubelet) -> None:
    client = Client(kubelet.daemon.socket)
    begun = Session(client, None)
    build_pod(kubelet, begun).run("/bin/sleep", "1000")
    for image, writable in ((kubelet.image, True), ("", False)):
        request = admin.MountBuildImageRequest(build_id=begun.id, image_id=image, writable=writable)
        kubelet.client.admin.MountBuildImage(request)
    assert len(mounts.below(str(kubelet.daemon.state / "builds"))) == 4
    kubelet.daemon.kill()
    kubelet.daemon.start()
    assert kubelet.daemon.leftovers() == []


def test_what_a_killed_prune_has_left_is_in_nobodys_way(kubelet: Kubelet) -> None:
    with session(kubelet) as begun:
        for name in ("a", "a.gone"):
            (Path(begun.caches) / name / "data").mkdir(parents=True)
    assert kubelet.client.admin.PruneBuildCache(admin.PruneBuildCacheRequest()).caches == 2
    assert os.listdir(begun.caches) == []


def test_the_cache_is_counted_and_pruned(kubelet: Kubelet) -> None:
    def left(**asked: Any) -> admin.PruneBuildCacheResponse:
        return kubelet.client.admin.PruneBuildCache(admin.PruneBuildCacheRequest(**asked))

    assert left(dry=True).images == 0
    with session(kubelet) as begun:
        with begun.mounted("", writable=True) as tree:
            Path(tree.directory, "file").write_bytes(os.urandom(100_000))
            step = begun.commit("", {"os": "linux"}, [{}], ["localhost/crisp-build:1"], mount=tree.id)
        named = begun.commit(step, {"config": {"User": "1"}}, [{}], ["localhost/crisp-build:2", "localhost/built:x"])
        assert (left(dry=True).images, left().images) == (2, 0)
        assert left(dry=True).bytes > 100_000
        [image] = [one for one in kubelet.images.ListImages(cri.ListImagesRequest()).images if one.id == step]
        assert (list(image.repo_tags), list(image.repo_digests)) == (["localhost/crisp-build:1"], [])
    assert left().images == 2
    assert left(dry=True).images == 0
    kept = kubelet.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=named))).image
    assert list(kept.repo_tags) == ["localhost/built:x"]
