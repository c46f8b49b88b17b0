"""The daemon's event loop touches files in memory only: a disk that does not answer must not hold up what needs none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import ROOT, Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.small_disk import SmallDisk
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root


class Witnessed:
    """A kubelet on a daemon whose event loop is listened to."""

    def __init__(self, rootfs: Path) -> None:
        self.daemon = Daemon()
        self._report = self.daemon.directory / "loop"
        hook = ROOT / "tests/harness/loop_witness"
        self._environment = {
            "PYTHONPATH": str(hook),
            "CRISP_TEST_LOOP": str(self._report),
            "CRISP_TEST_MEMORY": f"{self.daemon.state}/",
        }
        self.start()
        self.kubelet = Kubelet.on(self.daemon, rootfs)

    def start(self) -> None:
        self.daemon.start(**self._environment)
        assert self.daemon.process is not None
        os.kill(self.daemon.process.pid, signal.SIGUSR2)

    def heard(self) -> set[str]:
        """What the loop has done, without the names of files."""
        lines = self._report.read_text().splitlines()
        return {f"{line.split()[0]} by {line.partition(' by ')[2]} e.g. {line}" for line in lines}


@pytest.fixture
def witnessed(rootfs: Path) -> Iterator[Witnessed]:
    found = Witnessed(rootfs)
    yield found
    if found.daemon.process is None:
        found.start()
    found.daemon.remove_all()
    left = found.daemon.leftovers()
    found.daemon.destroy()
    assert left == []


def test_no_file_is_touched_on_the_loop(witnessed: Witnessed) -> None:
    """One life of everything; what the loop does with files meanwhile is told with who did it."""
    kubelet = witnessed.kubelet
    runtime = kubelet.runtime
    for options in ({}, {"pid": cri.POD}, {"network": cri.NODE}):
        config = kubelet.pod_config(**options)
        pod = kubelet.pod(config)
        wanted = cri.ContainerConfig()
        wanted.mounts.add(host_path="/etc", container_path="/host", readonly=True)
        wanted.linux.resources.oom_score_adj = 500
        wanted.devices.add(host_path="/dev/fuse", container_path="/dev/fuse", permissions="r")
        profile = witnessed.daemon.directory / "profile.json"
        profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW"}))
        wanted.linux.security_context.seccomp.profile_type = cri.SecurityProfile.Localhost
        wanted.linux.security_context.seccomp.localhost_ref = str(profile)
        container = pod.run("/bin/sh", "-c", "while true; do echo line; sleep 0.1; done", config=wanted)
        container.sh("echo hello")
        container.status()
        runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container.id, verbose=True))
        runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True))
        runtime.Status(cri.StatusRequest(verbose=True))
        runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container.id))
        runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest())
        runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest())
        runtime.ListContainers(cri.ListContainersRequest())
        runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container.id))
        container.update(oom_score_adj=600)
        kubelet.images.ListImages(cri.ListImagesRequest())
        kubelet.images.ImageFsInfo(cri.ImageFsInfoRequest())
        container.stop()
        container.remove()
        pod.shell("exit 3")
        pod.stop()
        pod.remove()
    heard = witnessed.heard()
    assert not heard, "\n".join(sorted(heard))


def test_a_frozen_disk_holds_up_nothing_that_needs_none(rootfs: Path) -> None:
    """As a dying disk does it: whoever writes waits, for ever."""
    daemon = Daemon()
    with SmallDisk(daemon.root, mib=64, inodes=4096):
        daemon.start()
        kubelet = Kubelet.on(daemon, rootfs)
        pod = kubelet.pod()
        container = pod.run("/bin/sleep", "1000")
        runtime = kubelet.runtime
        subprocess.run(["fsfreeze", "--freeze", str(daemon.root)], check=True)
        try:
            with ThreadPoolExecutor(1) as pool:
                creating = pool.submit(pod.create, "/bin/sleep", "1000")
                for _ in range(20):
                    runtime.Version(cri.VersionRequest(), timeout=10)
                    assert len(runtime.ListContainers(cri.ListContainersRequest(), timeout=10).containers) == 1
                    runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=10)
                    runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest(), timeout=10)
                assert container.sh("echo here") == "here\n"
                runtime.StopContainer(cri.StopContainerRequest(container_id=container.id), timeout=30)
                assert container.status().state == cri.CONTAINER_EXITED

                def unready() -> bool:
                    conditions = runtime.Status(cri.StatusRequest(), timeout=20).status.conditions
                    ready = next(c for c in conditions if c.type == "RuntimeReady")
                    return ready.reason in ("StateNotWritable", "DiskDoesNotAnswer") and not ready.status

                wait_until(unready)
                subprocess.run(["fsfreeze", "--unfreeze", str(daemon.root)], check=True)
                creating.result()
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", str(daemon.root)], capture_output=True)
        daemon.remove_all()
        assert daemon.leftovers() == []
        daemon.stop()
    daemon.destroy()
