"""What the kernel and the OCI runtime take for a pod by themselves, bare, beside what the pod takes: the limit of all speed.

    .venv/bin/python -m tests.bench.parts [--rounds 20]

Each round does every part once and starts and ends one pod, so that all have the same machine. Medians in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kernel import cgroups, mounts, namespaces, own_thread, syscalls
from runtime.network import requests
from runtime.network.leases import POD_GROUP
from shim import process, rootfs
from tests.bench.runtimes import Crisp, isolate
from tests.bench.subject import milliseconds, push_image, running
from tests.harness.rootfs import make_rootfs
from tests.images.registry_server import Registry

NAME = "crisp-bench-part"
RUNTIME = "crun"


class Parts:
    """The parts, each a call."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._hierarchies = cgroups.detect()
        self._group = self._hierarchies.group(f"{NAME}-{os.getpid()}")
        self._layer = make_rootfs(base / "layer")
        self._count = 0
        hybrid = self._hierarchies.mode is cgroups.Mode.HYBRID
        rootfs.enter_private_namespace(self._hierarchies.unified if hybrid else "")
        mounts.make_private("/", recursive=True)
        program = shutil.which(RUNTIME)
        assert program is not None
        self._program = program
        self._bundle()

    def _bundle(self) -> None:
        bundle = self._base / "bundle"
        bundle.mkdir()
        mounts.bind(str(self._layer), str(self._layer))
        document = {
            "ociVersion": "1.0.2",
            "process": {"args": ["/bin/sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": str(self._layer), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            ],
            "linux": {
                "cgroupsPath": f"/{self._group.path}/container",
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            },
        }
        (bundle / "config.json").write_text(json.dumps(document))

    def _call(self, *arguments: str) -> None:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        argv = [self._program, "--root", str(self._base / "state"), *arguments]
        code, _ = process.exit_code(os.waitpid(process.spawn(argv, (null, null, null)), 0)[1])
        os.close(null)
        assert code == 0, arguments

    def runtime_alone(self) -> None:
        self._call("--version")

    def create(self) -> None:
        self._call("create", "--bundle", str(self._base / "bundle"), NAME)

    def start(self) -> None:
        self._call("start", NAME)

    def delete(self) -> None:
        self._call("delete", "--force", NAME)

    def namespaces(self) -> None:
        """As a sandbox has them, by a thread that ends with them."""
        own_thread.apart(lambda: namespaces.unshare(("net", "ipc", "uts")))

    def veth(self) -> None:
        """A pair with its other end in a namespace that is there."""
        self._count += 1
        _veth(f"cr{self._count:011x}", self._netns)

    def groups(self) -> None:
        group = self._hierarchies.group(f"{self._group.path}/made")
        group.create()
        group.remove()

    def move(self) -> None:
        """A process that sleeps, from one group to another."""
        self._count += 1
        group = self._hierarchies.group(f"{self._group.path}/moved{self._count % 2}")
        group.create()
        group.enter(self._keeper)

    def overlay(self) -> None:
        for name in ("upper", "work", "merged"):
            (self._base / name).mkdir(exist_ok=True)
        merged = str(self._base / "merged")
        mounts.overlay(merged, [str(self._layer)], str(self._base / "upper"), str(self._base / "work"), volatile=True)
        mounts.detach(merged)

    def __enter__(self) -> Parts:
        self._keeper = os.fork()
        if self._keeper == 0:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            signal.pause()
        home = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self._keeper}/ns/net") == home:
            time.sleep(0.001)
        self._netns = os.open(f"/proc/{self._keeper}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._netns)
        os.kill(self._keeper, signal.SIGKILL)
        os.waitpid(self._keeper, 0)
        while not (self._group.kill() and self._group.remove()):
            time.sleep(0.01)
        mounts.detach_all(str(self._base))


def _veth(name: str, netns: int) -> None:
    macs = {"mac": f"fe:c5:00:00:{name[-4:-2]}:{name[-2:]}", "peer_mac": f"02:c5:00:00:{name[-4:-2]}:{name[-2:]}"}
    peer = {"peer": f"p{name[-6:]}", "peer_netns": netns}
    with requests.netlink_socket() as netlink:
        requests.carry_out(netlink, [requests.new_veth(name, mtu=1500, master=0, group=POD_GROUP, **macs, **peer)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    isolate()
    base = Path(tempfile.mkdtemp(prefix="crisp-parts-", dir="/var/tmp"))
    registry = Registry(base / "registry")
    try:
        (base / "logs").mkdir()
        with running(Crisp(base / "crisp"), push_image(base, registry), base / "logs") as subject, Parts(base) as parts:
            works: dict[str, Callable[[], object]] = {
                "three namespaces, by a thread of their own": parts.namespaces,
                "a veth pair": parts.veth,
                "a cgroup in each hierarchy, made and removed": parts.groups,
                "a process moved, in each hierarchy": parts.move,
                "an overlay, mounted and unmounted": parts.overlay,
                f"{RUNTIME} --version: fork, exec, libraries": parts.runtime_alone,
                f"{RUNTIME} create": parts.create,
                f"{RUNTIME} start": parts.start,
                f"{RUNTIME} delete --force": parts.delete,
            }
            subject.pod().end()
            taken: dict[str, list[float]] = {name: [] for name in (*works, "start of a pod", "end of a pod")}
            for _ in range(options.rounds):
                for name, work in works.items():
                    taken[name].append(milliseconds(work))
                pods = []
                taken["start of a pod"].append(milliseconds(lambda: pods.append(subject.pod())))  # noqa: B023
                taken["end of a pod"].append(milliseconds(pods[0].end))
    finally:
        registry.close()
        shutil.rmtree(base, ignore_errors=True)
    print("| | ms |\n|---|---|")
    for name, times in taken.items():
        print(f"| {name} | {statistics.median(times):.1f} |")


if __name__ == "__main__":
    main()
