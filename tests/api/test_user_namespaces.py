"""Pods with users of their own (hostUsers: false)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import grpc
import pytest

from kernel import mounts
from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

HOST_ID, COUNT = 200000, 65536


def pod_config(kubelet: Kubelet, *, first: int = 0, lines: int = 1, mode: int = cri.POD) -> cri.PodSandboxConfig:
    config = kubelet.pod_config()
    options = config.linux.security_context.namespace_options.userns_options
    options.mode = mode
    for _ in range(lines):
        options.uids.add(host_id=HOST_ID, container_id=first, length=COUNT)
        options.gids.add(host_id=HOST_ID, container_id=first, length=COUNT)
    return config


def test_root_inside_is_nobody_outside(kubelet: Kubelet, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "of-root").write_text("x")
    mount = cri.Mount(container_path="/volume", host_path=str(volume))
    mount.uidMappings.add(host_id=HOST_ID, container_id=0, length=COUNT)
    mount.gidMappings.add(host_id=HOST_ID, container_id=0, length=COUNT)
    kubelet.need_handler("crun", user_namespaces=True)
    pod = kubelet.pod(pod_config(kubelet), handler="crun")
    container = pod.run("/bin/sleep", "100", config=cri.ContainerConfig(mounts=[mount]))
    assert container.sh("cat /proc/self/uid_map").split() == ["0", str(HOST_ID), str(COUNT)]
    assert container.sh("id -u").strip() == "0"
    # The image's files belong to root inside, though nothing was chowned, and can be changed.
    assert container.sh("stat -c %u:%g /bin/busybox /etc/passwd").split() == ["0:0"] * 2
    container.sh("echo y >> /etc/passwd; touch /new; chown 1000 /new")
    upper = kubelet.daemon.root / "containers" / container.id / "upper"
    assert (upper / "new").stat().st_uid == HOST_ID + 1000
    # Volumes with mappings keep the host's owners.
    assert container.sh("stat -c %u /volume/of-root").strip() == "0"
    container.sh("touch /volume/made")
    assert (volume / "made").stat().st_uid == 0
    for kind in ("net", "ipc", "uts", "user"):
        assert container.sh(f"readlink /proc/self/ns/{kind}").strip() != os.readlink(f"/proc/self/ns/{kind}")
    container.sh("echo 1 > /proc/sys/net/ipv4/ip_forward 2>/dev/null || true; ip link set lo mtu 1400 || true")
    assert container.exec("/bin/sh", "-c", "echo x > /dev/shm/x").exit_code == 0


def test_groups_may_be_mapped_otherwise_than_users(kubelet: Kubelet) -> None:
    kubelet.need_handler("crun", user_namespaces=True)
    config = kubelet.pod_config()
    options = config.linux.security_context.namespace_options.userns_options
    options.mode = cri.POD
    options.uids.add(host_id=HOST_ID, container_id=0, length=COUNT)
    options.gids.add(host_id=HOST_ID + 2 * COUNT, container_id=0, length=COUNT // 2)
    container = kubelet.pod(config, handler="crun").run("/bin/sleep", "100")
    assert container.sh("cat /proc/self/uid_map").split() == ["0", str(HOST_ID), str(COUNT)]
    assert container.sh("cat /proc/self/gid_map").split() == ["0", str(HOST_ID + 2 * COUNT), str(COUNT // 2)]
    assert container.sh("stat -c %u:%g /bin/busybox /").split() == ["0:0"] * 2
    container.sh("touch /new; chown 7:8 /new")
    made = (kubelet.daemon.root / "containers" / container.id / "upper" / "new").stat()
    assert (made.st_uid, made.st_gid) == (HOST_ID + 7, HOST_ID + 2 * COUNT + 8)


def test_network_works(kubelet: Kubelet) -> None:
    kubelet.need_handler("crun", user_namespaces=True)
    pod = kubelet.pod(pod_config(kubelet), handler="crun")
    container = pod.run("/bin/sleep", "100")
    assert pod.status().network.ip in container.sh("ip addr")
    assert pod.status().linux.namespaces.options.userns_options.mode == cri.POD


@pytest.mark.parametrize(
    ("first", "lines", "mode", "message"),
    [
        (0, 2, cri.POD, "exactly one uid mapping"),
        (0, 0, cri.POD, "exactly one uid mapping"),
        (1, 1, cri.POD, "must begin at 0"),
        (0, 1, cri.CONTAINER, "mode CONTAINER"),
        (0, 1, cri.TARGET, "mode TARGET"),
        (0, 1, cri.NODE, "mode is NODE"),
    ],
)
def test_refused(kubelet: Kubelet, first: int, lines: int, mode: int, message: str) -> None:
    with pytest.raises(grpc.RpcError, match=message):
        kubelet.need_handler("crun", user_namespaces=True)
        kubelet.pod(pod_config(kubelet, first=first, lines=lines, mode=mode), handler="crun")


@pytest.mark.parametrize("handler", ["crun", "runc"])
@pytest.mark.parametrize("pid", [cri.CONTAINER, cri.POD])
def test_volumes_and_image_volumes_with_any_runtime(kubelet: Kubelet, tmp_path: Path, handler: str, pid: int) -> None:
    """Debian's runc maps no mounts, its crun none where it joins a PID namespace, and nobody an overlay: crisp maps them."""
    kubelet.need_handler(handler, user_namespaces=True)
    tmp_path.chmod(0o755)
    (tmp_path / "of-root").write_text("x")
    config = pod_config(kubelet)
    config.linux.security_context.namespace_options.pid = pid
    mapped = {
        "uidMappings": [cri.IDMapping(host_id=HOST_ID, container_id=0, length=COUNT)],
        "gidMappings": [cri.IDMapping(host_id=HOST_ID, container_id=0, length=COUNT)],
    }
    base = kubelet.pod().run("/bin/sh", "-c", "echo upper > /in-upper; exec sleep 1000")
    wait_until(lambda: base.exec("/bin/cat", "/in-upper").exit_code == 0)
    request = admin.CommitContainerRequest(container_id=base.id, reference=f"localhost/two-{handler}-{pid}:test")
    layers = kubelet.client.admin.CommitContainer(request).image_id
    wanted = cri.ContainerConfig(
        mounts=[
            cri.Mount(container_path="/volume", host_path=str(tmp_path), **mapped),
            cri.Mount(container_path="/file", host_path=str(tmp_path / "of-root"), **mapped),
            cri.Mount(container_path="/image", image=cri.ImageSpec(image=layers), readonly=True, **mapped),
        ]
    )
    container = kubelet.pod(config, handler=handler).run("/bin/sleep", "100", config=wanted)
    assert (
        container.sh("stat -c %u:%g /volume /volume/of-root /file /image/bin/busybox /image/in-upper").split() == ["0:0"] * 5
    )
    assert container.sh("cat /image/in-upper; touch /volume/made") == "upper\n"
    assert (tmp_path / "made").stat().st_uid == 0
    kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=layers)))


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_state_below_a_closed_directory(rootfs: Path, handler: str) -> None:
    """The root of a user namespace gets through no 0700 directory on its own. Where that matters, the error names it."""
    daemon = Daemon()
    daemon.directory.chmod(0o700)
    try:
        daemon.start()
        kubelet = Kubelet.on(daemon, rootfs)
        kubelet.need_handler(handler)
        try:
            container = kubelet.pod(pod_config(kubelet), handler=handler).run("/bin/sleep", "100")
        except grpc.RpcError as error:
            assert f"{daemon.directory} lets only its owner through (mode 0700)" in str(error.details())
        else:
            assert container.sh("id -u; stat -c %u /bin/busybox").split() == ["0", "0"]
    finally:
        daemon.destroy()


def test_what_is_made_in_the_root_belongs_to_root_inside(kubelet: Kubelet, tmp_path: Path, rootfs: Path) -> None:
    """Directories of VOLUME, and what links of the image name: nobody's, they could not be written to."""
    kubelet.need_handler("crun", user_namespaces=True)
    tmp_path.chmod(0o755)
    image = tmp_path / "image"
    shutil.copytree(rootfs, image, symlinks=True)
    (image / "var/link").symlink_to("/made/by/link")
    (image / "var/conf").symlink_to("/made/conf")
    wanted = cri.ContainerConfig()
    source = tmp_path / "volume"
    source.mkdir()
    (source / "file").touch()
    for place, host_path in (("/var/link/below", source), ("/var/conf", source / "file")):
        mount = wanted.mounts.add(container_path=place, host_path=str(host_path))
        mount.uidMappings.add(host_id=HOST_ID, container_id=0, length=COUNT)
        mount.gidMappings.add(host_id=HOST_ID, container_id=0, length=COUNT)
    request = admin.AddRootfsRequest(name="localhost/made:test", directory=str(image))
    wanted.image.image = kubelet.client.admin.AddRootfs(request).image_id
    container = kubelet.pod(pod_config(kubelet), handler="crun").run("/bin/sleep", "100", config=wanted)
    assert container.sh("stat -c %u:%g /made /made/by /made/by/link").split() == ["0:0"] * 3
    container.sh("touch /made/new /made/by/link/new")
    upper = kubelet.daemon.root / "containers" / container.id / "upper"
    assert (upper / "made/conf").stat().st_uid == HOST_ID


def test_volume_whose_file_system_cannot_be_mapped(kubelet: Kubelet, tmp_path: Path) -> None:
    """An NFS volume, say: here it is an overlay."""
    kubelet.need_handler("crun", user_namespaces=True)
    places = {name: tmp_path / name for name in ("lower", "upper", "work", "volume")}
    for place in places.values():
        place.mkdir()
    volume = places["volume"]
    mounts.overlay(str(volume), [str(places["lower"])], str(places["upper"]), str(places["work"]))
    try:
        wanted = cri.ContainerConfig()
        mount = wanted.mounts.add(container_path="/volume", host_path=str(volume))
        mount.uidMappings.add(host_id=HOST_ID, container_id=0, length=COUNT)
        mount.gidMappings.add(host_id=HOST_ID, container_id=0, length=COUNT)
        with pytest.raises(grpc.RpcError, match=f"volume {volume}: its file system cannot") as caught:
            kubelet.pod(pod_config(kubelet), handler="crun").create("/bin/true", config=wanted)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    finally:
        mounts.detach(str(volume))
