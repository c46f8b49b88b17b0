"""Checkpoints and restores of containers and pods: around CRIU with a runtime that only plays its part
(harness/fake_criu.py), and with CRIU where it works.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import zstandard

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from proto import nri_pb2 as nri
from tests.harness import fake_criu
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Container, Kubelet, Pod
from tests.harness.nri_plugin import NriPlugin
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root


def criu_works() -> bool:
    return shutil.which("criu") is not None and subprocess.run(["criu", "check"], capture_output=True).returncode == 0


with_criu = pytest.mark.skipif(not criu_works(), reason="no CRIU that works on this kernel")

LOOP = "echo begin; echo on > /upper; rm /etc/group; i=0; while true; do i=$((i+1)); echo $i > /count; sleep 0.02; done"


class Lab:
    """A node whose handler `fake` can checkpoint and restore."""

    def __init__(self, kubelet: Kubelet, steer: Path) -> None:
        self.kubelet = kubelet
        self.steer = steer

    def pod(self, **linux: Any) -> Pod:
        return self.kubelet.pod(self.kubelet.pod_config(**linux), handler="fake")

    def looping(self, pod: Pod, name: str = "worker", **fields: Any) -> Container:
        config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name=name), **fields)
        container = pod.run("/bin/sh", "-c", LOOP, config=config)
        wait_until(lambda: container.exec("/bin/cat", "/count").exit_code == 0)
        return container

    def archive(self, path: Path, container: Container | None = None) -> Path:
        container = container or self.looping(self.pod())
        request = cri.CheckpointContainerRequest(container_id=container.id, location=str(path))
        self.kubelet.runtime.CheckpointContainer(request)
        return path

    def restored(self, path: Path | str, pod: Pod | None = None, **fields: Any) -> Container:
        config = cri.ContainerConfig(image=cri.ImageSpec(image=str(path)), **fields)
        return (pod or self.pod()).create(config=config)

    def made(self) -> list[str]:
        """The checkpoints of this test, each by what only its images have."""
        return (self.steer / "made").read_text().splitlines()

    def brought_back(self) -> list[str]:
        """The same of restores."""
        return (self.steer / "restored").read_text().splitlines()

    def containers_on_disk(self) -> list[str]:
        return sorted(os.listdir(self.kubelet.daemon.root / "containers"))


@pytest.fixture(scope="module")
def fake_daemon() -> Iterator[tuple[Daemon, Path]]:
    daemon = Daemon()
    steer = daemon.directory / "fake"
    steer.mkdir()
    program = steer / "runtime"
    shutil.copy(fake_criu.__file__, program)
    program.write_text(f"#!/usr/bin/python3\n{program.read_text()}")
    program.chmod(0o755)
    criu = steer / "criu"
    criu.write_text("#!/bin/sh\nexit 1\n")
    criu.chmod(0o755)
    daemon.config.write_text(
        daemon.config.read_text() + f'[containers]\nrestore_checkpoints = true\n[runtimes.fake]\npath = "{program}"\n'
    )
    yield daemon, steer
    daemon.destroy()


@pytest.fixture
def lab(fake_daemon: tuple[Daemon, Path], rootfs: Path) -> Iterator[Lab]:
    daemon, steer = fake_daemon
    if daemon.process is None:
        start(daemon, steer)
    lab = Lab(Kubelet.on(daemon, rootfs), steer)
    yield lab
    for name in ("fail-checkpoint", "fail-restore", "hold-checkpoint", "held", "made", "restored"):
        (steer / name).unlink(missing_ok=True)
    daemon.remove_all()
    assert daemon.leftovers() == []
    assert list((daemon.root / "checkpoints").glob("*")) == []


def start(daemon: Daemon, steer: Path) -> None:
    daemon.start(PATH=f"{os.environ['PATH']}:{steer}")


def refused(call: Any, *arguments: Any, **fields: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **fields)
    return caught.value.code(), caught.value.details()


def rewritten(source: Path, target: Path, **changed: Any) -> Path:
    """A copy of an archive with other documents, by name with `_` for `.`; None leaves one out."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            key = member.name.replace(".", "_").replace("/", "_").replace("-", "_")
            data = old.extractfile(member).read() if member.isreg() else b""  # type: ignore[union-attr]
            if key in changed and changed[key] is None:
                continue
            if key in changed:
                data = changed[key](data)
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return target


def spec_with(**process: Any) -> Any:
    def change(data: bytes) -> bytes:
        spec = json.loads(data)
        spec["process"] |= process
        return json.dumps(spec).encode()

    return change


def test_from_an_archive(lab: Lab, tmp_path: Path) -> None:
    old = lab.looping(lab.pod(), envs=[cri.KeyValue(key="WHO", value=b"me")], working_dir="/tmp")
    path = lab.archive(tmp_path / "c.tar", old)
    lab.archive(tmp_path / "later.tar", old)
    old.remove()
    pod = lab.pod()
    labels = {"made": "of a checkpoint"}
    container = lab.restored(path, pod, labels=labels, annotations={"a": "b"})
    path.unlink()  # nobody needs it any more
    before = container.status()
    assert (before.state, before.started_at) == (cri.CONTAINER_CREATED, 0)
    assert before.image.image == "localhost/busybox:test"
    assert before.image_ref == before.image_id == lab.kubelet.image
    container.start()
    assert lab.brought_back() == lab.made()[:1]
    wait_until(lambda: container.exec("/bin/cat", "/count").exit_code == 0)
    status = container.status()
    assert status.state == cri.CONTAINER_RUNNING
    assert status.started_at > status.created_at
    assert dict(status.labels) == labels
    assert container.sh(
        "cat /upper; ls /etc; echo $WHO; pwd"
    ) == "on\nhosts\nhostname\npasswd\nresolv.conf\nme\n/tmp\n".replace("hosts\nhostname\npasswd", "hostname\nhosts\npasswd")
    assert container.sh("hostname").strip() == pod.config.hostname
    assert container.output() == "begin\n"
    assert status.log_path.startswith(pod.config.log_directory)
    assert not (lab.kubelet.daemon.root / "containers" / container.id / "restore").exists()
    container.stop()
    assert container.wait().exit_code == 137


def test_again_of_what_was_restored(lab: Lab, tmp_path: Path) -> None:
    first = lab.restored(lab.archive(tmp_path / "1.tar"))
    first.start()
    second = lab.restored(lab.archive(tmp_path / "2.tar", first))
    second.start()
    assert second.sh("cat /upper") == "on\n"
    assert second.status().image.image == "localhost/busybox:test"


@pytest.mark.parametrize("compress", ["gz", "zst"])
def test_compressed_archive(lab: Lab, tmp_path: Path, compress: str) -> None:
    plain = lab.archive(tmp_path / "c.tar").read_bytes()
    path = tmp_path / f"c.tar.{compress}"
    if compress == "gz":
        path.write_bytes(gzip.compress(plain))
    else:
        path.write_bytes(zstandard.compress(plain))
    container = lab.restored(path)
    container.start()
    assert container.sh("cat /upper") == "on\n"


def test_archive_of_other_runtimes(lab: Lab, tmp_path: Path) -> None:
    """CRI-O lists what was deleted in a file, and adds files of its own."""

    def without_whiteouts(data: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=out, mode="w") as new:
            for member in old:
                if "/.wh." not in member.name:
                    new.addfile(member, old.extractfile(member))
        return out.getvalue()

    source = lab.archive(tmp_path / "c.tar")
    path = rewritten(source, tmp_path / "other.tar", rootfs_diff_tar=without_whiteouts, dump_log=None, stats_dump=None)
    with tarfile.open(path, "a") as tar:
        for name, data in (("deleted.files", b'["/etc/group", "/nowhere/at/all"]'), ("bind.mounts", b"[]")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    container = lab.restored(path)
    container.start()
    assert container.sh("ls /etc; ls /nowhere || true").split() == ["hostname", "hosts", "passwd", "resolv.conf"]


def test_from_an_image(lab: Lab, tmp_path: Path) -> None:
    image = checkpoint_image(lab, lab.archive(tmp_path / "c.tar"), tmp_path)
    container = lab.restored(image)
    lab.kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image)))
    container.start()
    assert container.sh("cat /upper") == "on\n"
    status = container.status()
    assert (status.image.image, status.image_ref) == ("localhost/busybox:test", lab.kubelet.image)


def test_hostile_image(lab: Lab, tmp_path: Path) -> None:
    """A link in the image to a file of the node is not what CRIU reads."""
    archive = lab.archive(tmp_path / "c.tar")
    hostile = tmp_path / "h.tar"
    rewritten(archive, hostile, checkpoint_core_1_img=None)
    with tarfile.open(hostile, "a") as tar:
        link = tarfile.TarInfo("checkpoint/pages-1.img")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        tar.addfile(link)
    image = checkpoint_image(lab, hostile, tmp_path)
    code, details = refused(lab.restored, image)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "checkpoint/pages-1.img is not a plain file" in details
    lab.kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image)))


def checkpoint_image(lab: Lab, archive: Path, tmp_path: Path) -> str:
    """What `buildah add` of an archive to an empty image makes, with the annotation; imported."""

    def blob(data: bytes) -> tuple[str, int]:
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(data)
        return f"sha256:{digest}", len(data)

    layout = tmp_path / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)
    layer, layer_size = blob(archive.read_bytes())
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config, config_size = blob(
        json.dumps(
            {"architecture": machine, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer]}}
        ).encode()
    )
    kind = "application/vnd.oci.image"
    manifest, manifest_size = blob(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{kind}.manifest.v1+json",
                "config": {"mediaType": f"{kind}.config.v1+json", "digest": config, "size": config_size},
                "layers": [{"mediaType": f"{kind}.layer.v1.tar", "digest": layer, "size": layer_size}],
                "annotations": {"io.kubernetes.cri-o.annotations.checkpoint.name": "worker"},
            }
        ).encode()
    )
    entry = {
        "mediaType": f"{kind}.manifest.v1+json",
        "digest": manifest,
        "size": manifest_size,
        "annotations": {"org.opencontainers.image.ref.name": "localhost/checkpoint:1"},
    }
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    reply = lab.kubelet.client.admin.ImportImages(admin.ImportImagesRequest(path=str(layout)))
    return str(reply.image_ids[0])


def test_restart_between_create_and_start(lab: Lab, tmp_path: Path) -> None:
    container = lab.restored(lab.archive(tmp_path / "c.tar"))
    lab.kubelet.daemon.kill()
    start(lab.kubelet.daemon, lab.steer)
    assert container.status().state == cri.CONTAINER_CREATED
    container.start()
    assert container.sh("cat /upper") == "on\n"
    lab.kubelet.daemon.kill()
    start(lab.kubelet.daemon, lab.steer)
    assert container.sh("cat /upper") == "on\n"


def test_stopped_and_removed_before_the_start(lab: Lab, tmp_path: Path) -> None:
    path = lab.archive(tmp_path / "c.tar")
    stopped, removed = lab.restored(path), lab.restored(path)
    stopped.stop()
    status = stopped.status()
    assert (status.state, status.exit_code, status.started_at) == (cri.CONTAINER_EXITED, 137, 0)
    assert refused(stopped.start)[0] is grpc.StatusCode.FAILED_PRECONDITION
    stopped.remove()
    removed.remove()


def test_restore_that_fails(lab: Lab, tmp_path: Path) -> None:
    container = lab.restored(lab.archive(tmp_path / "c.tar"))
    (lab.steer / "fail-restore").write_text("Can't open file dev/shm/x on restore")
    code, details = refused(container.start)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "Can't open file dev/shm/x on restore" in details
    assert container.wait().state == cri.CONTAINER_EXITED
    status = container.status()
    assert (status.exit_code, status.reason) == (128, "StartError")
    container.remove()


def test_same_request_again(lab: Lab, tmp_path: Path) -> None:
    path, pod = lab.archive(tmp_path / "c.tar"), lab.pod()
    metadata = cri.ContainerMetadata(name="once")
    assert lab.restored(path, pod, metadata=metadata).id == lab.restored(path, pod, metadata=metadata).id


def test_what_does_not_fit_is_refused_by_name(lab: Lab, tmp_path: Path) -> None:
    volume = cri.Mount(container_path="/data", host_path=str(tmp_path))
    path = lab.archive(tmp_path / "c.tar", lab.looping(lab.pod(), mounts=[volume]))
    before = lab.containers_on_disk()
    other = cri.Mount(container_path="/other", host_path=str(tmp_path))
    readonly = cri.Mount(container_path="/data", host_path=str(tmp_path), readonly=True)
    run_as = cri.ContainerConfig()
    run_as.linux.security_context.run_as_user.value = 1000
    fewer = cri.ContainerConfig()
    fewer.linux.security_context.capabilities.drop_capabilities.append("CHOWN")
    tries: list[tuple[dict[str, Any], str]] = [
        ({}, "mounts at /data, which are not asked for"),
        ({"mounts": [volume, other]}, "no mounts at /other, which are asked for"),
        ({"mounts": [readonly]}, "/data is read-only in one of the two"),
        ({"mounts": [volume], "tty": True}, "has a terminal"),
        ({"mounts": [volume], "linux": run_as.linux}, "runs as 0:0, and is to run as 1000:1000"),
        ({"mounts": [volume], "linux": fewer.linux}, "its processes have CAP_CHOWN"),
    ]
    for fields, reason in tries:
        code, details = refused(lab.restored, path, **fields)
        assert (code, reason in details) == (grpc.StatusCode.FAILED_PRECONDITION, True), details
    code, details = refused(lab.restored, path, lab.pod(pid=cri.POD), mounts=[volume])
    assert "its pid namespace was the container's own, and is to be shared" in details
    container = lab.restored(path, mounts=[volume])
    container.start()
    assert container.sh("ls /data") == "c.tar\n"
    container.remove()
    assert lab.containers_on_disk() == before


def test_a_mount_of_a_plugin_that_was_not_there_is_refused(lab: Lab, tmp_path: Path) -> None:
    path = lab.archive(tmp_path / "checkpoint.tar")
    before = lab.containers_on_disk()
    mount = nri.Mount(destination="/of-plugin", type="bind", source=str(tmp_path), options=["rbind", "ro"])
    reply = nri.CreateContainerResponse(adjust=nri.ContainerAdjustment(mounts=[mount]))
    with (
        NriPlugin(lab.kubelet.daemon.nri_socket, on={"CreateContainer": lambda _: reply}),
        pytest.raises(grpc.RpcError, match="it had no mounts at /of-plugin"),
    ):
        lab.restored(path)
    assert lab.containers_on_disk() == before


def test_broken_archives(lab: Lab, tmp_path: Path) -> None:
    good = lab.archive(tmp_path / "c.tar")
    before = lab.containers_on_disk()
    (tmp_path / "text").write_text("no archive at all" * 1000)
    (tmp_path / "short.tar").write_bytes(good.read_bytes()[:5000])
    os.mkfifo(tmp_path / "fifo")
    link = tmp_path / "link.tar"
    rewritten(good, link, spec_dump=None)
    with tarfile.open(link, "a") as tar:
        member = tarfile.TarInfo("spec.dump")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    outside = tmp_path / "outside.tar"
    shutil.copy(good, outside)
    with tarfile.open(outside, "a") as tar:
        tar.addfile(tarfile.TarInfo("checkpoint/../../../escaped"))
    twice = tmp_path / "twice.tar"
    shutil.copy(good, twice)
    with tarfile.open(twice, "a") as tar:
        tar.addfile(tarfile.TarInfo("config.dump"))
    huge = tmp_path / "huge.tar"
    rewritten(good, huge, spec_dump=lambda data: data + b" " * (9 << 20))

    def escaping(_data: bytes) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("../escaped"))
        return out.getvalue()

    tries = {
        tmp_path / "text": "where an octal number belongs",
        tmp_path / "short.tar": "ends in the middle",
        tmp_path / "fifo": "not a regular file",
        tmp_path / "nothing": "is not there",
        link: "spec.dump is not a plain file",
        outside: "`..`",
        twice: "config.dump is there twice",
        huge: "spec.dump has more than",
        rewritten(good, tmp_path / "1", config_dump=None): "no config.dump",
        rewritten(good, tmp_path / "2", checkpoint_inventory_img=None): "no checkpoint/inventory.img",
        rewritten(good, tmp_path / "3", spec_dump=lambda _: b"{"): "spec.dump is not JSON",
        rewritten(good, tmp_path / "4", spec_dump=lambda _: b"[" * 100_000): "spec.dump is not JSON",
        rewritten(good, tmp_path / "5", spec_dump=lambda _: b"[]"): "must be an object",
        rewritten(good, tmp_path / "6", spec_dump=spec_with(args="sh")): "args must be an array",
        rewritten(good, tmp_path / "7", config_dump=lambda _: b'{"rootfsImageRef": 4}'): "must be a string",
        rewritten(good, tmp_path / "8", config_dump=lambda _: b"{}"): "does not say which",
        rewritten(good, tmp_path / "9", rootfs_diff_tar=escaping): "rootfs-diff.tar cannot be used",
    }
    pod = lab.pod()
    for path, reason in tries.items():
        code, details = refused(lab.restored, path, pod)
        assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), (path, details)
        assert reason in details, (path, details)
    assert lab.containers_on_disk() == before
    assert not (tmp_path / "escaped").exists()


def test_images_that_criu_does_not_read(lab: Lab, tmp_path: Path) -> None:
    good = lab.archive(tmp_path / "c.tar")
    path = rewritten(good, tmp_path / "b.tar", checkpoint_inventory_img=lambda _: b"other")
    container = lab.restored(path)
    code, details = refused(container.start)
    assert (code, "Magic doesn't match" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    assert container.wait().reason == "StartError"


def test_base_image_that_is_not_here(lab: Lab, tmp_path: Path) -> None:
    good = lab.archive(tmp_path / "c.tar")
    config = {"rootfsImageRef": f"sha256:{'0' * 64}", "rootfsImageName": "localhost:1/no/such:image"}
    path = rewritten(good, tmp_path / "b.tar", config_dump=lambda _: json.dumps(config).encode())
    _, details = refused(lab.restored, path)
    assert "made of image localhost:1/no/such:image, which is not here" in details
    config["rootfsImageName"] = "localhost/busybox:test"
    path = rewritten(good, tmp_path / "d.tar", config_dump=lambda _: json.dumps(config).encode())
    code, details = refused(lab.restored, path)
    assert (code, "localhost/busybox:test is now" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)


def test_not_unless_the_administrator_allows_it(kubelet: Kubelet, tmp_path: Path) -> None:
    """A daemon with nothing configured."""
    pod = kubelet.pod()
    config = cri.ContainerConfig(image=cri.ImageSpec(image=str(tmp_path / "c.tar")))
    code, details = refused(pod.create, config=config)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "containers.restore_checkpoints" in details


# --- pods --------------------------------------------------------------------------------------------------------------


def checkpoint_pod(pod: Pod, containers: list[Container], directory: Path, **fields: Any) -> None:
    pod.kubelet.runtime.CheckpointPod(
        cri.CheckpointPodRequest(
            pod_sandbox_id=pod.id, output_path=str(directory), container_ids=[c.id for c in containers], **fields
        ),
        timeout=60,
    )


def container_config(lab: Lab, name: str, *command: str) -> cri.ContainerConfig:
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        image=cri.ImageSpec(image=lab.kubelet.image),
        command=command or ("/bin/sh", "-c", LOOP),
        log_path=f"{name}.log",
    )
    config.linux.security_context.namespace_options.pid = cri.CONTAINER
    return config


def restore_request(lab: Lab, directory: Path, *names: str) -> cri.RestorePodRequest:
    return cri.RestorePodRequest(
        checkpoint_path=str(directory),
        config=lab.kubelet.pod_config(),
        runtime_handler="fake",
        container_configs=[container_config(lab, name) for name in names],
    )


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "pod"
    path.mkdir()
    return path


def test_pod(lab: Lab, output: Path) -> None:
    pod = lab.pod()
    containers = [lab.looping(pod, name) for name in ("one", "two")]
    containers[0].sh("echo shared > /dev/shm/file; echo own > /own")
    checkpoint_pod(pod, containers, output)
    for container in containers:
        before = container.sh("cat /count")
        wait_until(lambda c=container, b=before: c.sh("cat /count") != b)  # type: ignore[misc]
    assert stat.S_IMODE((output / "0").stat().st_mode) == 0o700
    pod.remove()
    request = restore_request(lab, output, "two", "one")
    seen = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    reply = lab.kubelet.runtime.RestorePod(request, timeout=60)
    assert [restored.name for restored in reply.restored_containers] == ["two", "one"]
    assert lab.kubelet.runtime.RestorePod(request, timeout=60) == reply
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == seen
    again = Pod(lab.kubelet, reply.pod_sandbox_id, request.config)
    two, one = (Container(again, restored.container_id) for restored in reply.restored_containers)
    for container in (one, two):
        assert container.status().state == cri.CONTAINER_CREATED
        container.start()
    assert one.sh("cat /own /dev/shm/file") == "own\nshared\n"
    assert two.sh("ls /own || true; cat /dev/shm/file") == "shared\n"
    assert one.status().log_path == f"{request.config.log_directory}/one.log"


def test_pod_is_one_cut(lab: Lab, output: Path) -> None:
    """While the first container is written, the second stands still too."""
    pod = lab.pod()
    volume = cri.Mount(container_path="/volume", host_path=str(output.parent))
    containers = [lab.looping(pod, name, mounts=[volume]) for name in ("one", "two")]
    (lab.steer / "hold-checkpoint").touch()
    call = lab.kubelet.runtime.CheckpointPod.future(
        cri.CheckpointPodRequest(pod_sandbox_id=pod.id, output_path=str(output), container_ids=[c.id for c in containers]),
        timeout=60,
    )
    wait_until((lab.steer / "held").exists)
    upper = [lab.kubelet.daemon.root / "containers" / c.id / "upper/count" for c in containers]
    assert all(is_frozen(lab, c) for c in containers)
    before = [path.read_text() for path in upper]
    (lab.steer / "hold-checkpoint").unlink()
    call.result()
    for index, count in enumerate(before):
        with tarfile.open(output / str(index) / "rootfs-diff.tar") as tar:
            assert tar.extractfile("count").read().decode() == count  # type: ignore[union-attr]
    assert not any(is_frozen(lab, c) for c in containers)


def is_frozen(lab: Lab, container: Container) -> bool:
    """By runc's own word."""
    root = lab.kubelet.daemon.state / "runtimes/fake"
    done = subprocess.run(["runc", "--root", str(root), "state", container.id], capture_output=True, check=True)
    return bool(json.loads(done.stdout)["status"] == "paused")


def test_pod_checkpoint_that_fails_leaves_nothing(lab: Lab, output: Path) -> None:
    pod = lab.pod()
    containers = [lab.looping(pod, name) for name in ("one", "two")]
    (lab.steer / "fail-checkpoint").write_text("Connected TCP socket")
    code, details = refused(checkpoint_pod, pod, containers, output)
    assert (code, "Connected TCP socket" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    assert list(output.iterdir()) == []
    for container in containers:
        assert container.sh("echo on") == "on\n"


def test_pod_checkpoint_over_its_time_leaves_nothing(lab: Lab, output: Path) -> None:
    pod = lab.pod()
    container = lab.looping(pod)
    (lab.steer / "hold-checkpoint").touch()
    request = cri.CheckpointPodRequest(pod_sandbox_id=pod.id, output_path=str(output), container_ids=[container.id])
    assert refused(lab.kubelet.runtime.CheckpointPod, request, timeout=1)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    (lab.steer / "hold-checkpoint").unlink()
    wait_until(lambda: os.listdir(lab.kubelet.daemon.root / "checkpoints") == [])
    assert list(output.iterdir()) == []
    assert container.sh("echo on") == "on\n"


def test_pod_checkpoint_requests_that_are_refused(lab: Lab, output: Path) -> None:
    pod, stranger = lab.pod(), lab.looping(lab.pod())
    container = lab.looping(pod)
    ended = pod.shell("true")
    invalid, precondition = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
    full = output.parent / "full"
    full.mkdir()
    (full / "file").touch()
    tries: list[tuple[list[Container], Path, dict[str, Any], grpc.StatusCode]] = [
        ([], output, {}, invalid),
        ([container, container], output, {}, invalid),
        ([container, stranger], output, {}, invalid),
        ([container, ended], output, {}, precondition),
        ([container], output, {"options": {"leave-running": "false"}}, invalid),
        ([container], Path("relative"), {}, invalid),
        ([container], output / "missing", {}, precondition),
        ([container], full, {}, precondition),
    ]
    for containers, directory, fields, code in tries:
        assert refused(checkpoint_pod, pod, containers, directory, **fields)[0] is code
    assert list(output.iterdir()) == []
    pod.stop()
    assert refused(checkpoint_pod, pod, [container], output)[0] is precondition


def test_restore_pod_requests_that_are_refused(lab: Lab, output: Path) -> None:
    pod = lab.pod()
    checkpoint_pod(pod, [lab.looping(pod, "one"), lab.looping(pod, "two")], output)
    pod.remove()

    def change(**fields: Any) -> cri.RestorePodRequest:
        request = restore_request(lab, output, *fields.pop("names", ("one", "two")))
        for name, value in fields.items():
            setattr(request, name, value)
        return request

    optional = change()
    optional.options["x"] = "y"
    other_command = change()
    other_command.container_configs[0].command[:] = ["/bin/sleep", "1"]
    other_variable = change()
    other_variable.container_configs[0].envs.add(key="NEW", value=b"secret")
    other_user = change()
    other_user.container_configs[0].linux.security_context.run_as_user.value = 5
    tries = [
        (optional, "unknown options x"),
        (change(checkpoint_path="relative"), "not an absolute path"),
        (change(checkpoint_path=str(output.parent)), "holds no checkpoint of a pod"),
        (change(runtime_handler="nothing"), "no runtime handler"),
        (change(runtime_handler="runc"), "of handler 'fake', and not of 'runc'"),
        (change(names=("one",)), "holds containers one, two"),
        (change(names=("one", "three")), "holds containers one, two"),
        (change(names=("one", "one")), "none twice"),
        (change(names=()), "none twice"),
        (other_command, "args differ"),
        (other_variable, "variable NEW differ"),
        (other_user, "is to run as 5:0"),
    ]
    for request, reason in tries:
        _, details = refused(lab.kubelet.runtime.RestorePod, request, timeout=60)
        assert reason in details
        assert "secret" not in details
        assert not lab.kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items


# --- the daemon is killed ----------------------------------------------------------------------------------------------


def test_killed_amid_a_checkpoint_of_a_container(lab: Lab, tmp_path: Path) -> None:
    container = lab.looping(lab.pod())
    (lab.steer / "hold-checkpoint").touch()
    location = tmp_path / "archive/c.tar"
    location.parent.mkdir()
    request = cri.CheckpointContainerRequest(container_id=container.id, location=str(location))
    call = lab.kubelet.runtime.CheckpointContainer.future(request)
    killed_and_thawed(lab, [container])
    assert call.exception() is not None
    assert list(location.parent.iterdir()) == []
    assert not (lab.kubelet.daemon.root / "containers" / container.id / "checkpoint").exists()
    lab.archive(location, container)


def test_killed_amid_a_checkpoint_of_a_pod(lab: Lab, output: Path) -> None:
    pod = lab.pod()
    containers = [lab.looping(pod, name) for name in ("one", "two")]
    (lab.steer / "hold-checkpoint").touch()
    call = lab.kubelet.runtime.CheckpointPod.future(
        cri.CheckpointPodRequest(pod_sandbox_id=pod.id, output_path=str(output), container_ids=[c.id for c in containers])
    )
    killed_and_thawed(lab, containers)
    assert call.exception() is not None
    assert list(output.iterdir()) == []
    checkpoint_pod(pod, containers, output)


def killed_and_thawed(lab: Lab, containers: list[Container]) -> None:
    """Kill the daemon while CRIU writes; thawed are the containers by their shims, as soon as CRIU is done."""
    wait_until((lab.steer / "held").exists)
    assert all(is_frozen(lab, container) for container in containers)
    lab.kubelet.daemon.kill()
    (lab.steer / "hold-checkpoint").unlink()
    wait_until(lambda: not any(is_frozen(lab, container) for container in containers))
    start(lab.kubelet.daemon, lab.steer)
    for container in containers:
        before = container.sh("cat /count")
        wait_until(lambda c=container, b=before: c.sh("cat /count") != b)  # type: ignore[misc]


# --- with CRIU ---------------------------------------------------------------------------------------------------------

COUNT = "i=0; while true; do i=$((i+1)); echo $i > /count; echo at $i; sleep 0.1; done"


def counting(pod: Pod, name: str = "worker", **fields: Any) -> Container:
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name=name), **fields)
    container = pod.run("/bin/sh", "-c", COUNT, config=config)
    wait_until(lambda: container.exec("/bin/cat", "/count").exit_code == 0 and count(container) > 3)
    return container


def count(container: Container) -> int:
    return int(container.sh("cat /count") or 0)


def namespace_of(lab: Lab, container: Container, kind: str) -> int:
    request = cri.ContainerStatusRequest(container_id=container.id, verbose=True)
    pid = json.loads(lab.kubelet.runtime.ContainerStatus(request).info["info"])["pid"]
    return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino


@with_criu
@pytest.mark.parametrize("tty", [False, True])
def test_criu_goes_on_where_it_was(lab: Lab, tmp_path: Path, tty: bool) -> None:
    old = counting(lab.kubelet.pod(handler="runc"), tty=tty)
    path = lab.archive(tmp_path / "c.tar", old)
    old.stop()
    last = int(old.output().split()[-1])
    pod = lab.kubelet.pod(handler="runc")
    container = lab.restored(path, pod, tty=tty)
    assert container.status().state == cri.CONTAINER_CREATED
    container.start()
    wait_until(lambda: count(container) > last)
    first = int(container.output().split()[1])
    assert 3 < first <= last + 1, "it neither began anew nor left something out"
    pins = lab.kubelet.daemon.state / "sandboxes" / pod.id / "ns"
    for kind in ("net", "ipc", "uts"):
        assert namespace_of(lab, container, kind) == (pins / kind).stat().st_ino, kind
    assert container.sh("hostname").strip() == pod.config.hostname
    stats = lab.kubelet.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container.id)).stats
    assert stats.memory.usage_bytes.value > 0
    again = lab.archive(tmp_path / "again.tar", container)
    container.stop()
    assert container.wait().exit_code == 137
    second = lab.restored(again, lab.kubelet.pod(handler="runc"), tty=tty)
    second.start()
    wait_until(lambda: count(second) > last)


@with_criu
def test_criu_says_why_not(lab: Lab, tmp_path: Path) -> None:
    old = counting(lab.kubelet.pod(handler="runc"))
    good = lab.archive(tmp_path / "c.tar", old)
    path = rewritten(good, tmp_path / "b.tar", checkpoint_inventory_img=lambda data: data[:4] + b"\0\0\0\0" + data[8:])
    container = lab.restored(path, lab.kubelet.pod(handler="runc"))
    code, details = refused(container.start)
    assert (code, "criu/" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True), details
    assert container.wait().reason == "StartError"


@with_criu
def test_criu_pod(lab: Lab, output: Path) -> None:
    pod = lab.kubelet.pod(handler="runc")
    containers = [counting(pod, name) for name in ("one", "two")]
    containers[0].sh("echo shared > /dev/shm/file")
    checkpoint_pod(pod, containers, output)
    before = {name: count(container) for name, container in zip(("one", "two"), containers, strict=True)}
    pod.remove()
    request = restore_request(lab, output, "one", "two")
    request.runtime_handler = "runc"
    for config in request.container_configs:
        config.command[:] = ["/bin/sh", "-c", COUNT]
    reply = lab.kubelet.runtime.RestorePod(request, timeout=500)
    again = Pod(lab.kubelet, reply.pod_sandbox_id, request.config)
    for restored in reply.restored_containers:
        container = Container(again, restored.container_id)
        container.start()
        wait_until(lambda c=container, n=restored.name: count(c) > before[n])  # type: ignore[misc]
        assert container.sh("cat /dev/shm/file") == "shared\n"
        assert int(container.output().split()[1]) > 3


@with_criu
def test_criu_pod_that_shares_namespaces(lab: Lab, output: Path) -> None:
    """Queues of the pod's IPC namespace are restored once; processes get their ids in the pod's PID namespace back."""
    pod = lab.kubelet.pod(lab.kubelet.pod_config(pid=cri.POD), handler="runc")
    containers = [counting(pod, name) for name in ("one", "two")]
    pins = lab.kubelet.daemon.state / "sandboxes"
    subprocess.run(["nsenter", f"--ipc={pins / pod.id / 'ns/ipc'}", "ipcmk", "-Q"], check=True)
    queues = containers[0].sh("cat /proc/sysvipc/msg")
    assert queues.count("\n") == 2
    checkpoint_pod(pod, containers, output)
    pod.remove()
    request = restore_request(lab, output, "one", "two")
    request.runtime_handler = "runc"
    request.config.linux.security_context.namespace_options.pid = cri.POD
    for config in request.container_configs:
        config.command[:] = ["/bin/sh", "-c", COUNT]
        config.linux.security_context.namespace_options.pid = cri.POD
    reply = lab.kubelet.runtime.RestorePod(request, timeout=500)
    again = Pod(lab.kubelet, reply.pod_sandbox_id, request.config)
    for restored in reply.restored_containers:
        container = Container(again, restored.container_id)
        container.start()
        assert container.sh("cat /proc/sysvipc/msg").split()[-14:-2] == queues.split()[-14:-2]


@with_criu
def test_criu_that_outlives_the_daemon(lab: Lab, tmp_path: Path) -> None:
    container = counting(lab.kubelet.pod(handler="runc"))
    location = tmp_path / "archive/c.tar"
    location.parent.mkdir()
    request = cri.CheckpointContainerRequest(container_id=container.id, location=str(location))
    call = lab.kubelet.runtime.CheckpointContainer.future(request)
    scratch = lab.kubelet.daemon.root / "containers" / container.id / "checkpoint"
    wait_until((scratch / "dump.log").exists)
    lab.kubelet.daemon.kill()
    assert call.exception() is not None
    start(lab.kubelet.daemon, lab.steer)
    before = count(container)
    wait_until(lambda: count(container) > before)
    wait_until(lambda: not scratch.exists())
    assert list(location.parent.iterdir()) == []
    restored = lab.restored(lab.archive(location, container), lab.kubelet.pod(handler="runc"))
    restored.start()
    wait_until(lambda: count(restored) > before)
