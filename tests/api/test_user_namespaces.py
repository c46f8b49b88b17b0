"""Pods with users of their own (hostUsers: false)."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import pytest

from proto import api_pb2 as cri
from tests.harness.kubelet import Kubelet

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


def test_handler_that_cannot(kubelet: Kubelet) -> None:
    """Debian's runc 1.1 ignores the mappings of mounts: the probe has seen it, and the pod is refused with the reason."""
    features = {h.name: h.features for h in kubelet.runtime.Status(cri.StatusRequest()).runtime_handlers}
    if features["runc"].user_namespaces:
        kubelet.pod(pod_config(kubelet), handler="runc")
        return
    with pytest.raises(grpc.RpcError, match="cannot map the ids of mounts") as caught:
        kubelet.pod(pod_config(kubelet), handler="runc")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
