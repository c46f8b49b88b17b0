"""CheckpointContainer."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import grpc
import pytest

from proto import api_pb2 as cri
from tests.harness.kubelet import Container, Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root


def criu_works() -> bool:
    return shutil.which("criu") is not None and subprocess.run(["criu", "check"], capture_output=True).returncode == 0


with_criu = pytest.mark.skipif(not criu_works(), reason="no CRIU that works on this kernel")


def checkpoint(container: Container, location: Path | str, timeout: int = 0) -> None:
    container.runtime.CheckpointContainer(
        cri.CheckpointContainerRequest(container_id=container.id, location=str(location), timeout=timeout)
    )


def refused(container: Container, location: Path | str, timeout: int = 0) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        checkpoint(container, location, timeout)
    code: grpc.StatusCode = caught.value.code()
    return code


@with_criu
def test_archive(kubelet: Kubelet, tmp_path: Path) -> None:
    script = "echo written > /file; i=0; while true; do i=$((i+1)); echo $i > /count; sleep 0.1; done"
    container = kubelet.pod(kubelet.pod_config(), handler="runc").run("/bin/sh", "-c", script)
    wait_until(lambda: container.exec("/bin/cat", "/count").exit_code == 0)
    checkpoint(container, tmp_path / "c.tar")
    with tarfile.open(tmp_path / "c.tar") as archive:
        names = archive.getnames()
        config = json.loads(archive.extractfile("config.dump").read())  # type: ignore[union-attr]
        spec = json.loads(archive.extractfile("spec.dump").read())  # type: ignore[union-attr]
        with tarfile.open(fileobj=archive.extractfile("rootfs-diff.tar")) as layer:
            assert layer.extractfile("file").read() == b"written\n"  # type: ignore[union-attr]
    assert "checkpoint/inventory.img" in names
    assert (config["id"], config["runtime"]) == (container.id, "runc")
    assert spec["process"]["args"] == ["/bin/sh", "-c", script]
    assert [path.name for path in tmp_path.iterdir()] == ["c.tar"]
    before = container.sh("cat /count")
    wait_until(lambda: container.sh("cat /count") != before)
    container.stop()


def test_refusals_leave_nothing_and_the_container_runs_on(kubelet: Kubelet, tmp_path: Path) -> None:
    pod = kubelet.pod()
    container = pod.run("/bin/sleep", "1000")
    ended = pod.shell("true")
    assert refused(container, "relative") is grpc.StatusCode.INVALID_ARGUMENT
    assert refused(ended, tmp_path / "c.tar") is grpc.StatusCode.FAILED_PRECONDITION
    location = tmp_path / "missing/c.tar" if criu_works() else tmp_path / "c.tar"
    assert refused(container, location) is grpc.StatusCode.FAILED_PRECONDITION
    assert list(tmp_path.iterdir()) == []
    assert container.sh("echo on") == "on\n"
