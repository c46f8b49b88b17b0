"""A daemon of the tests' own: its directories, socket, bridge and table are nobody else's, and it is a real process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import grpc

from kernel import cgroups, mounts, namespaces
from proto import api_pb2 as cri
from proto.errors import CrispError
from runtime.paths import NETNS_DIRECTORY, Paths
from tests.harness.client import Client
from tests.harness.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 160 * PATIENCE
STOP_SECONDS = 60 * PATIENCE


class Daemon:
    """`crisp serve`, started, killed and started again as a test likes."""

    def __init__(self, extra_config: str = "", nri: str = "") -> None:
        """`nri` are further lines of the [nri] section."""
        # Not below pytest's own directory: nobody but root gets through that, and a pod's users are not root.
        directory = Path(tempfile.mkdtemp(prefix="crisp-test-", dir="/var/tmp"))
        directory.chmod(0o711)
        self.directory = directory
        self.root, self.state = directory / "lib", directory / "run"
        self.socket = str(self.state / "crisp.sock")
        self.log_path = directory / "daemon.log"
        self.cgroup_parent = f"/{directory.name}"
        self.certs = directory / "certs.d"
        self.certs.mkdir(parents=True, exist_ok=True)
        self.nri_socket = str(directory / "nri/nri.sock")
        self.config = directory / "crisp.toml"
        self.config.write_text(
            # One that has a section of its own for it says where the kubelet's cAdvisor may ask.
            ("" if "[metrics]" in extra_config else 'metrics.cadvisor_socket = ""\n')
            + f'[log]\nlevel = "debug"\nformat = "json"\n[cgroup]\nparent = "{self.cgroup_parent}"\n'
            f'shims = "{self.cgroup_parent}/shims"\n[images.registries]\ncerts_dirs = ["{self.certs}"]\n'
            f'[nri]\nsocket_path = "{self.nri_socket}"\nplugin_path = "{directory}/nri/plugins"\n'
            f'plugin_config_path = "{directory}/nri/conf.d"\n{nri}\n'
            f'[network.cni]\nconf_dir = "{directory}/net.d"\n{extra_config}'
        )
        self.program = [sys.executable, str(ROOT / "crisp.py")]
        self.process: subprocess.Popen[bytes] | None = None
        self.client: Client | None = None

    def start(self, failpoint: str = "", **environment: str) -> Self:
        """Start it and wait until it answers."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        if failpoint:
            environment["CRISP_FAILPOINT"] = failpoint
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*self.program, "serve", "--config", str(self.config)),
                    *("--root", str(self.root), "--state", str(self.state)),
                ],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the daemon ended: {self.tail()}"
            if os.path.exists(self.socket):
                try:
                    self.client = Client(self.socket)
                    self.client.runtime.Version(cri.VersionRequest(), timeout=START_SECONDS)
                except (grpc.RpcError, CrispError):  # it has just removed the socket of the daemon before
                    self.disconnect()
                else:
                    return self
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"the daemon does not answer: {self.tail()}")

    def crashed(self) -> str:
        """The end of the log of a daemon that has ended by itself; empty if it runs, or was ended by the test."""
        if self.process is None or self.process.poll() is None:
            return ""
        return f"exit status {self.wait_death()}: {self.tail()}"

    def tail(self) -> str:
        """The end of its log."""
        return self.log_path.read_text(errors="replace")[-4000:] if self.log_path.exists() else ""

    def disconnect(self) -> None:
        """Close the client."""
        if self.client is not None:
            self.client.__exit__(None, None, None)
            self.client = None

    def kill(self) -> None:
        """SIGKILL, as the OOM killer would."""
        assert self.process is not None
        self.disconnect()
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)
        self.process = None

    def wait_death(self) -> int:
        """Wait until it ended by itself; its exit status."""
        assert self.process is not None
        self.disconnect()
        status = self.process.wait(STOP_SECONDS)
        self.process = None
        return status

    def stop(self) -> None:
        """SIGTERM, as systemd would."""
        if self.process is None:
            return
        self.disconnect()
        self.process.terminate()
        assert self.process.wait(STOP_SECONDS) == 0, self.tail()
        self.process = None

    def pause_pid(self, sandbox_id: str) -> int:
        """The init of a pod's shared PID namespace."""
        assert self.client is not None
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id, verbose=True)
        return int(json.loads(self.client.runtime.PodSandboxStatus(request).info["info"])["pid"])

    def remove_all(self) -> None:
        """Remove every pod, and every image but those that are pinned."""
        assert self.client is not None
        runtime = self.client.runtime
        for sandbox in runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
            runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=sandbox.id))
            runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox.id))

    def leftovers(self) -> list[str]:
        """What is still there of pods that are gone: mounts, directories, cgroups, processes."""
        lasting = {str(self.state / name) for name in ("containers", "layers", "layers/namespace")}
        found = [
            str(mount.mount_point)
            for mount in mounts.below(str(self.state))
            if os.fsdecode(mount.mount_point) not in lasting
        ]
        found += self.netns()
        runtimes = [f"run/runtimes/{path.name}" for path in self.state.glob("runtimes/*")]
        for parent in ("run/sandboxes", "run/containers", "lib/containers", "run/builds", "lib/builds", *runtimes):
            directory = self.directory / parent
            found += (
                [str(directory / name) for name in os.listdir(directory) if name != "probe"] if directory.exists() else []
            )
        for root in cgroups.detect().roots():
            directory = Path(root + self.cgroup_parent)
            if directory.exists():
                found += [str(p) for p in directory.iterdir() if p.is_dir() and p.name != "shims"]
        return found

    def netns(self) -> list[str]:
        """Its pods' namespaces among those of the host."""
        paths = Paths(self.root, self.state)
        names = os.listdir(NETNS_DIRECTORY) if NETNS_DIRECTORY.is_dir() else []
        return [str(NETNS_DIRECTORY / name) for name in names if paths.sandbox_of_netns(name)]

    def destroy(self) -> None:
        """End it and remove what it had, whatever state it is in."""
        try:
            if self.process is not None:
                if self.process.poll() is None and self.client is not None:
                    self.remove_all()
                self.stop()
        finally:
            if self.process is not None:
                self.kill()
            self._remove()

    def _remove(self) -> None:
        hierarchies = cgroups.detect()
        group = hierarchies.group(self.cgroup_parent.strip("/"))
        deadline = time.monotonic() + STOP_SECONDS
        while not (group.kill() and group.remove()) and time.monotonic() < deadline:
            time.sleep(0.01)
        for place in self.netns():
            namespaces.unpin(place)
        mounts.detach_all(str(self.state))
        shutil.rmtree(self.directory, ignore_errors=True)
