"""Disks without a free block or inode, and read-only ones: what is there can be looked at, stopped and removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.api.test_command import IMAGE, crisp
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.small_disk import SmallDisk
from tests.harness.waiting import wait_until
from tests.images.image_builder import Layout, Member, busybox
from tests.images.registry_server import Registry

pytestmark = [pytest.mark.root, pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="no loop devices")]

MIB = 48
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


class Node:
    """A kubelet on a daemon whose root directory is a small disk."""

    def __init__(self, daemon: Daemon, disk: SmallDisk, rootfs: Path) -> None:
        self.daemon, self.disk = daemon, disk
        daemon.start()
        self.kubelet = Kubelet.on(daemon, rootfs)


@pytest.fixture
def node(rootfs: Path) -> Iterator[Node]:
    """After the test there is room again, and nothing may be left."""
    daemon = Daemon()
    with SmallDisk(daemon.root, MIB) as disk:
        node = Node(daemon, disk, rootfs)
        yield node
        disk.free()
        if daemon.process is None:
            daemon.start()
        daemon.remove_all()
        left = daemon.leftovers()
        daemon.stop()
    daemon.destroy()
    assert left == []


def refused(call: object, *arguments: object) -> str:
    """The message of a call that is refused because something is exhausted."""
    assert callable(call)
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    assert caught.value.code() is FULL, caught.value
    message: str = caught.value.details()
    assert "bug" not in message
    return message


def condition(kubelet: Kubelet) -> cri.RuntimeCondition:
    status = kubelet.runtime.Status(cri.StatusRequest()).status
    return next(c for c in status.conditions if c.type == "RuntimeReady")


def test_full_disk(node: Node) -> None:
    """Also when the daemon is killed on it: it starts without a free block, loses nothing, and lets room be made."""
    kubelet = node.kubelet
    pod = kubelet.pod()
    witness = pod.run("/bin/sh", "-c", "while true; do echo tick; sleep 0.05; done")
    created, ending = pod.create("/bin/true"), pod.run_trap("exit 7", "TERM")
    node.disk.fill()
    for restarted in (False, True):
        if restarted:
            node.daemon.kill()
            node.disk.fill()
            node.daemon.start()
        assert "is full" in refused(kubelet.pod)
        assert "is full" in refused(pod.create, "/bin/true")
        assert condition(kubelet).reason == "DiskFull"
        assert witness.sh("echo alive") == "alive\n"
        if not restarted:
            ending.stop(30)
            assert ending.status().exit_code == 7
        assert ending.status().state == cri.CONTAINER_EXITED
    assert ending.status().exit_code == 7
    created.start()
    assert created.wait().exit_code == 0
    created.remove()
    ending.remove()
    pod.remove()
    assert kubelet.runtime.ListContainers(cri.ListContainersRequest()).containers == []
    node.disk.free()
    assert condition(kubelet).status
    assert kubelet.pod().shell("exit 3").status().exit_code == 3


def test_full_disk_in_the_log(node: Node) -> None:
    """Lines are dropped and the container goes on; the log goes on with whole lines once there is room."""
    kubelet = node.kubelet
    kubelet.logs = node.daemon.root / "logs"
    script = "n=0; while true; do n=$((n+1)); echo line $n; echo $n > /dev/shm/n; [ $((n % 50)) = 0 ] && sleep 0.02; done"
    container = kubelet.pod().run("/bin/sh", "-c", script)
    wait_until(lambda: len(container.log_lines()) > 10)
    node.disk.fill()
    size = os.stat(container.status().log_path).st_size

    def counted() -> int:
        while not (text := container.sh("cat /dev/shm/n")):
            continue  # it is being written
        return int(text)

    count = counted()
    wait_until(lambda: counted() > count + 500)
    node.disk.free()
    wait_until(lambda: os.stat(container.status().log_path).st_size > size + 10_000)
    container.stop(0)
    numbers = [int(text.split()[1]) for _stream, tag, text in container.log_lines() if tag == "F"]
    assert numbers == sorted(numbers), "whole lines, in order"
    assert numbers[-1] > len(numbers), "some were dropped"


def test_full_disk_in_a_pull(node: Node, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    try:
        layout = Layout(tmp_path / "layout")
        layout.image("big", [busybox(Member("data", os.urandom(4 << 20)))])
        layout.push("big", f"{registry.host}/disk/big:1")
        request = cri.PullImageRequest(image=cri.ImageSpec(image=f"{registry.host}/disk/big:1"))
        node.disk.fill()
        assert str(node.daemon.root) in refused(node.kubelet.images.PullImage, request)
        used = shutil.disk_usage(node.disk.path).used
        node.disk.free()
        ingest = node.daemon.root / "ingest"
        wait_until(lambda: not list(ingest.iterdir()) or used == 0)
        image = node.kubelet.images.PullImage(request).image_ref
        container = node.kubelet.pod().run("/bin/true", config=cri.ContainerConfig(image=cri.ImageSpec(image=image)))
        assert container.wait().exit_code == 0
    finally:
        registry.close()


def test_image_is_removed_from_a_full_disk(node: Node, tmp_path: Path) -> None:
    """Which is how room is made: the kubelet collects images when the disk is full."""
    layout = Layout(tmp_path / "layout")
    layout.image("localhost/full:1", [busybox(Member("data", os.urandom(4 << 20)))])
    request = admin.ImportImagesRequest(path=str(layout.path))
    assert node.daemon.client is not None
    (image,) = node.daemon.client.admin.ImportImages(request).image_ids
    node.disk.fill()
    node.daemon.kill()
    node.daemon.start()
    node.kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image)))
    wait_until(lambda: shutil.disk_usage(node.disk.path).free > 4 << 20)
    assert condition(node.kubelet).reason == "DiskFull", "16 MiB are the least"
    assert node.kubelet.pod().shell("exit 3").status().exit_code == 3


def test_no_inodes(node: Node) -> None:
    kubelet = node.kubelet
    pod = kubelet.pod()
    container = pod.run("/bin/sleep", "100")
    node.disk.fill_inodes()
    message = refused(pod.create, "/bin/true")
    assert "No space left on device" in message
    node.daemon.kill()
    node.daemon.start()
    assert container.sh("echo alive") == "alive\n"
    container.stop()
    container.remove()
    node.disk.free()
    assert pod.shell("exit 3").status().exit_code == 3


def test_disk_that_becomes_read_only(node: Node) -> None:
    """As the kernel makes it on an error of the disk: stops still end what runs, and the message says what is wrong."""
    kubelet = node.kubelet
    pod = kubelet.pod()
    container, other = pod.run("/bin/sleep", "100"), pod.run("/bin/sleep", "100")
    node.disk.break_down()
    assert container.sh("echo alive") == "alive\n"
    for call in (kubelet.pod, lambda: pod.create("/bin/true")):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert "bug" not in caught.value.details()
    assert condition(kubelet).reason in ("RootNotWritable", "StateNotWritable")
    for each in (container, other):
        each.stop()
        assert each.status().exit_code == 137
    node.daemon.kill()
    assert f"{node.daemon.root}/state.db cannot be opened" in start_fails(node.daemon)
    node.disk.repair()
    node.daemon.start()
    assert (container.status().exit_code, other.status().exit_code) == (137, 137)
    assert condition(kubelet).status
    assert pod.shell("exit 3").status().exit_code == 3


def start_fails(daemon: Daemon) -> str:
    """What a daemon says that cannot start."""
    with pytest.raises(AssertionError, match="the daemon ended"):
        daemon.start()
    daemon.wait_death()
    return daemon.tail()


def test_full_disk_in_a_build(node: Node, tmp_path: Path) -> None:
    """What is wrong is said in one line, with its place, and the disk has its room again afterwards."""
    (tmp_path / "large").write_bytes(os.urandom(MIB << 20))
    steps = {"RUN cat /dev/urandom > /large": "RUN: the command ended", "RUN --mount=target=/source true": "RUN: --mount: "}
    for step, said in steps.items():
        (tmp_path / "Containerfile").write_text(f"FROM {IMAGE}\n{step}\n")
        done = crisp(node.kubelet, "build", str(tmp_path))
        last = done.stderr.decode().splitlines()[-1]
        assert (done.returncode, f"Containerfile:2: {said}" in last) == (1, True), done
        assert b"No space left on device" in done.stderr
        wait_until(lambda: os.listdir(node.daemon.root / "builds") == [])
    node.disk.fill()
    done = crisp(node.kubelet, "build", str(tmp_path))
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done
    node.disk.free()
    (tmp_path / "Containerfile").write_text(f"FROM {IMAGE}\nRUN true\n")
    assert crisp(node.kubelet, "build", str(tmp_path)).returncode == 0
    wait_until(lambda: os.listdir(node.daemon.root / "builds") == [])
