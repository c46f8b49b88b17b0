"""The runtimes that are measured, each with directories, a socket and processes of its own.

    class Runtime   name, socket, start(), stop(), processes()

A benchmark enters a network namespace of its own first (`isolate`), so that bridges and rules go with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import grpc

from kernel import cgroups, mounts, syscalls
from proto import api_pb2 as cri
from tests.harness.client import Client

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60
CNI_PLUGINS = "/usr/lib/cni"


def isolate() -> None:
    """Enter a network namespace with nothing but loopback."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    with socket.socket() as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up, running


class Runtime:
    """A daemon behind a CRI socket."""

    name = ""
    handler = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.socket = str(directory / "run" / "cri.sock")
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> Client:
        """Start it; a client once it answers."""
        with open(self.directory / "log", "ab") as log:
            # As installed: with compiled modules.
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True, env=environment)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if os.path.exists(self.socket):
                client = Client(self.socket)
                try:
                    client.runtime.Version(cri.VersionRequest(), timeout=START_SECONDS)
                    status = client.runtime.Status(cri.StatusRequest(), timeout=START_SECONDS)
                    if all(condition.status for condition in status.status.conditions[:2]):
                        return client
                except grpc.RpcError:
                    pass
                client.__exit__(None, None, None)
            time.sleep(0.01)
        raise SystemExit(f"{self.name} does not start, see {self.directory}/log")

    def terminate(self) -> None:
        """End the daemon; its pods run on."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(START_SECONDS)

    def stop(self) -> None:
        """End it and take away what it leaves mounted."""
        self.terminate()
        mounts.detach_all(str(self.directory))
        shutil.rmtree(self.directory, ignore_errors=True)

    def processes(self, workload: bytes) -> list[int]:
        """What belongs to the runtime: all in this network namespace and their children, but for the pods' own program."""
        home = os.readlink("/proc/self/ns/net")
        parents = {pid: parent for pid in pids() if (parent := parent_of(pid))}
        inside = {pid for pid in parents if network_of(pid) == home}
        inside |= {pid for pid, parent in parents.items() if parent in inside}
        return [
            pid
            for pid in inside
            if pid != os.getpid() and comm(pid) != "docker-registry" and not command_of(pid).startswith(workload)
        ]


class Crisp(Runtime):
    """This checkout."""

    name = "crisp"

    def __init__(self, directory: Path, handler: str = "") -> None:
        super().__init__(directory)
        self.handler = handler
        self._parent = f"/crisp-bench-{os.getpid()}"
        self._config = directory / "crisp.toml"
        self._config.write_text(
            f'[cgroup]\nparent = "{self._parent}"\nshims = "{self._parent}/shims"\n[log]\nlevel = "warning"\n'
        )

    def command(self) -> list[str]:
        return [
            *(sys.executable, str(ROOT / "crisp.py"), "serve", "--config", str(self._config), "--socket", self.socket),
            *("--root", str(self.directory / "lib"), "--state", str(self.directory / "run")),
        ]

    def stop(self) -> None:
        super().stop()
        group = cgroups.detect().group(self._parent.strip("/"))
        while not (group.kill() and group.remove()):
            time.sleep(0.01)


class Containerd(Runtime):
    """Debian's containerd, with the CNI plugins that Debian has."""

    name = "containerd"

    def __init__(self, directory: Path, sandbox_image: str) -> None:
        super().__init__(directory)
        (directory / "net.d").mkdir()
        (directory / "run").mkdir()
        (directory / "net.d" / "10-bench.conflist").write_text(
            json.dumps(
                {
                    "cniVersion": "0.4.0",
                    "name": "bench",
                    "plugins": [
                        {
                            "type": "bridge",
                            "bridge": "bench0",
                            "isGateway": True,
                            "ipMasq": True,
                            "ipam": {
                                "type": "host-local",
                                "dataDir": str(directory / "ipam"),
                                "ranges": [[{"subnet": "10.210.0.0/16"}]],
                                "routes": [{"dst": "0.0.0.0/0"}],
                            },
                        }
                    ],
                }
            )
        )
        self._config = directory / "config.toml"
        self._config.write_text(
            f'version = 2\nroot = "{directory}/lib"\nstate = "{directory}/run/state"\n[grpc]\naddress = "{self.socket}"\n'
            f'[plugins."io.containerd.grpc.v1.cri"]\nstream_server_port = "0"\nsandbox_image = "{sandbox_image}"\n'
            # Without CAP_SYS_RESOURCE its sandboxes cannot have the score that it would give them.
            "restrict_oom_score_adj = true\n"
            f'[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "{CNI_PLUGINS}"\nconf_dir = "{directory}/net.d"\n'
        )

    def command(self) -> list[str]:
        return ["containerd", "-c", str(self._config), "-l", "error"]


class Containerd2(Containerd):
    """A containerd of version 2 that is not installed; its shim and the OCI runtime are looked for beside it first."""

    def __init__(self, directory: Path, sandbox_image: str, program: str) -> None:
        super().__init__(directory, sandbox_image)
        self._program = program
        self._config.write_text(
            f'version = 3\nroot = "{directory}/lib"\nstate = "{directory}/run/state"\n[grpc]\naddress = "{self.socket}"\n'
            f'[plugins."io.containerd.cri.v1.images".pinned_images]\nsandbox = "{sandbox_image}"\n'
            '[plugins."io.containerd.cri.v1.images"]\nuse_local_image_pull = true\n'
            '[plugins."io.containerd.cri.v1.runtime"]\nrestrict_oom_score_adj = true\n'
            "disable_hugetlb_controller = true\ntolerate_missing_hugetlb_controller = true\n"
            f'[plugins."io.containerd.cri.v1.runtime".cni]\nbin_dirs = ["{CNI_PLUGINS}"]\nconf_dir = "{directory}/net.d"\n'
            '[plugins."io.containerd.nri.v1.nri"]\ndisable = true\n'
        )

    def command(self) -> list[str]:
        beside = os.path.dirname(self._program)
        return ["env", f"PATH={beside}:{os.environ['PATH']}", self._program, "-c", str(self._config), "-l", "error"]


def containerd_of(directory: Path, sandbox_image: str, program: str) -> Containerd:
    """The one that is installed, or of version 2 if a program is given."""
    return Containerd2(directory, sandbox_image, program) if program else Containerd(directory, sandbox_image)


class Given(Runtime):
    """One that runs already and stays as it is."""

    def __init__(self, name: str, socket_path: str) -> None:
        self.name, self.socket, self.process = name, socket_path, None

    def start(self) -> Client:
        return Client(self.socket)

    def stop(self) -> None:
        return

    def processes(self, workload: bytes) -> list[int]:
        return []


def pids() -> set[int]:
    """All processes."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def parent_of(pid: int) -> int:
    """Its parent, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def network_of(pid: int) -> str:
    """Its network namespace."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def command_of(pid: int) -> bytes:
    """Its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def comm(pid: int) -> str:
    """A process's name."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def cpu_seconds(processes: list[int]) -> dict[int, float]:
    """User and system time that each has taken so far; without those that have ended."""
    seconds = {}
    for pid in processes:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def pss(processes: list[int]) -> int:
    """Memory of processes, shared pages shared out: bytes."""
    total = 0
    for pid in processes:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total
