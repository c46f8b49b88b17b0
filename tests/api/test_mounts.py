"""Volumes, seen from inside real containers: options, recursion, propagation, odd sources."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kernel import mounts, syscalls
from proto import api_pb2 as cri
from tests.harness.kubelet import Container, Kubelet

pytestmark = pytest.mark.root

MS_SHARED = 1 << 20


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs on a shared mount of the host, with another one below it."""
    volume = tmp_path / "shared"
    volume.mkdir()
    mounts.tmpfs(str(volume), 1 << 20)
    syscalls.mount("none", str(volume), flags=MS_SHARED)
    (volume / "below").mkdir()
    mounts.tmpfs(str(volume / "below"), 1 << 20)
    yield volume
    mounts.detach_all(str(volume))


def run(kubelet: Kubelet, *volumes: cri.Mount, privileged: bool = False, handler: str = "") -> Container:
    pod_config = kubelet.pod_config()
    pod_config.linux.security_context.privileged = privileged
    wanted = cri.ContainerConfig(mounts=volumes)
    wanted.linux.security_context.privileged = privileged
    return kubelet.pod(pod_config, handler=handler).run("/bin/sleep", "100", config=wanted)


def options(container: Container, path: str) -> set[str]:
    """As /proc/self/mounts has them."""
    [line] = [line for line in container.sh("cat /proc/self/mounts").splitlines() if line.split()[1] == path]
    return set(line.split()[3].split(","))


def test_mount_options(kubelet: Kubelet, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "tool").chmod(0o755)
    container = run(
        kubelet,
        cri.Mount(container_path="/strict", host_path=str(tmp_path), mount_options=["noexec", "nodev", "nosuid"]),
        cri.Mount(container_path="/lax", host_path=str(tmp_path)),
    )
    assert {"noexec", "nodev", "nosuid"} <= options(container, "/strict")
    assert "noexec" not in options(container, "/lax")
    assert container.sh("/lax/tool") == "ran\n"
    assert container.exec("/bin/sh", "-c", "/strict/tool").exit_code != 0
    with pytest.raises(grpc.RpcError, match="unknown option 'suid'"):
        run(kubelet, cri.Mount(container_path="/x", host_path=str(tmp_path), mount_options=["suid"]))


def test_recursive_read_only(kubelet: Kubelet, shared: Path) -> None:
    features = {h.name: h.features for h in kubelet.runtime.Status(cri.StatusRequest()).runtime_handlers}
    volume = cri.Mount(container_path="/v", host_path=str(shared), readonly=True)
    plain = run(kubelet, volume)
    assert plain.exec("/bin/touch", "/v/x").exit_code != 0
    assert plain.exec("/bin/touch", "/v/below/x").exit_code == 0, "readonly alone covers the topmost mount only"
    volume.recursive_read_only = True
    for name in ("crun", "runc"):
        if name not in features:
            continue
        if features[name].recursive_read_only_mounts:
            strict = run(kubelet, volume, handler=name)
            assert strict.exec("/bin/touch", "/v/x").exit_code != 0
            assert strict.exec("/bin/touch", "/v/below/x").exit_code != 0
        else:
            with pytest.raises(grpc.RpcError, match="RROUnsupported"):
                run(kubelet, volume, handler=name)


def test_private_volumes_do_not_follow_the_host(kubelet: Kubelet, shared: Path) -> None:
    container = run(kubelet, cri.Mount(container_path="/v", host_path=str(shared)))
    (shared / "later").mkdir()
    mounts.tmpfs(str(shared / "later"), 1 << 20)
    (shared / "later" / "file").touch()
    assert container.sh("ls /v/later") == ""


def test_host_to_container(kubelet: Kubelet, shared: Path) -> None:
    volume = cri.Mount(container_path="/v", host_path=str(shared), propagation=cri.PROPAGATION_HOST_TO_CONTAINER)
    container = run(kubelet, volume, privileged=True)
    (shared / "later").mkdir()
    mounts.tmpfs(str(shared / "later"), 1 << 20)
    (shared / "later" / "file").touch()
    assert container.sh("ls /v/later") == "file\n"
    container.sh("mkdir /v/mine && mount -t tmpfs none /v/mine && touch /v/mine/file")
    assert os.listdir(shared / "mine") == []


def test_bidirectional(kubelet: Kubelet, shared: Path) -> None:
    volume = cri.Mount(container_path="/v", host_path=str(shared), propagation=cri.PROPAGATION_BIDIRECTIONAL)
    container = run(kubelet, volume, privileged=True)
    container.sh("mkdir /v/mine && mount -t tmpfs none /v/mine && touch /v/mine/file")
    assert os.listdir(shared / "mine") == ["file"]


def test_sockets_pipes_and_devices_as_sources(kubelet: Kubelet, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        os.mkfifo(tmp_path / "pipe")
        container = run(
            kubelet,
            cri.Mount(container_path="/run/app.sock", host_path=str(tmp_path / "socket")),
            cri.Mount(container_path="/pipe", host_path=str(tmp_path / "pipe")),
            cri.Mount(container_path="/zero", host_path="/dev/zero"),
        )
        assert container.sh("stat -c %F /run/app.sock /pipe /zero").splitlines() == [
            "socket",
            "fifo",
            "character special file",
        ]


def test_links_in_the_image_do_not_lead_mounts_out(kubelet: Kubelet, tmp_path: Path) -> None:
    """A hostile image: where the volume goes is a link to the host's /etc, as the image sees it."""
    image_link = "/etc/evil"
    pod = kubelet.pod()
    wanted = cri.ContainerConfig(mounts=[cri.Mount(container_path=image_link, host_path=str(tmp_path))])
    container = pod.run("/bin/sleep", "100", config=wanted)
    container.sh(f"touch {image_link}/made")
    assert (tmp_path / "made").exists()
    assert not os.path.lexists(image_link)


def test_a_volume_in_place_of_shm(kubelet: Kubelet, tmp_path: Path) -> None:
    container = run(kubelet, cri.Mount(container_path="/dev/shm", host_path=str(tmp_path)))
    container.sh("touch /dev/shm/x")
    assert (tmp_path / "x").exists()
