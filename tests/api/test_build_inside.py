"""Images built inside a container of crisp, by another builder: Debian's buildah with its chroot isolation."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.harness.kubelet import Kubelet
from tests.harness.rootfs import BUSYBOX, make_rootfs

pytestmark = pytest.mark.root

HOST_ID, COUNT = 200000, 65536
CONTAINERFILE = """\
FROM scratch
COPY busybox /bin/busybox
COPY busybox /bin/sh
RUN ["/bin/busybox", "sh", "-c", "busybox echo made inside > /made; busybox chown 1000:50 /made"]
CMD ["/bin/busybox", "cat", "/made"]
"""


def with_buildah(rootfs: Path) -> None:
    """Put buildah and its libraries there."""
    program = shutil.which("buildah")
    assert program is not None
    needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in (program, *re.findall(r"(/\S+) \(0x", needed)):
        target = rootfs / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for directory in ("etc/containers", "root", "var/tmp"):
        (rootfs / directory).mkdir()
    (rootfs / "etc/containers/policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')


def pod_config(kubelet: Kubelet) -> cri.PodSandboxConfig:
    """A user namespace: what the builder may, it may do to its own users alone."""
    config = kubelet.pod_config()
    options = config.linux.security_context.namespace_options.userns_options
    options.mode = cri.POD
    options.uids.add(host_id=HOST_ID, container_id=0, length=COUNT)
    options.gids.add(host_id=HOST_ID, container_id=0, length=COUNT)
    return config


def test_buildah_in_a_pod(kubelet: Kubelet, tmp_path: Path) -> None:
    kubelet.need_handler("crun", user_namespaces=True)
    rootfs = tmp_path / "rootfs"
    with_buildah(make_rootfs(rootfs))
    context = rootfs / "context"
    context.mkdir()
    shutil.copy(BUSYBOX, context / "busybox")
    (context / "Containerfile").write_text(CONTAINERFILE)
    builder = cri.ContainerConfig()
    kubelet.client.admin.AddRootfs(admin.AddRootfsRequest(name="localhost/builder:1", directory=str(rootfs)))
    builder.image.image = "localhost/builder:1"
    builder.linux.security_context.capabilities.add_capabilities.append("SYS_ADMIN")
    pod = kubelet.pod(pod_config(kubelet), handler="crun")
    container = pod.run("/bin/sleep", "1000", config=builder)
    buildah = "buildah --storage-driver vfs --root /tmp/store --runroot /tmp/run"
    container.sh(f"{buildah} bud --isolation chroot -t localhost/inside:1 /context 2>&1")
    container.sh(f"{buildah} push localhost/inside:1 oci-archive:/tmp/image.tar:localhost/inside:1 2>&1")
    archive = kubelet.daemon.root / "containers" / container.id / "upper/tmp/image.tar"
    (made,) = kubelet.client.admin.ImportImages(admin.ImportImagesRequest(path=str(archive))).image_ids
    wanted = cri.ContainerConfig()
    wanted.image.image = made
    result = kubelet.pod().run(config=wanted)
    result.wait()
    assert result.output() == "made inside\n"
    looked_at = kubelet.pod().run("/bin/busybox", "sleep", "100", config=wanted)
    assert looked_at.exec("/bin/busybox", "stat", "-c", "%u:%g", "/made").stdout == b"1000:50\n"
