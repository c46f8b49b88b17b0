"""What an NRI plugin that wants all and does nothing costs, in one table.

    .venv/bin/python -m tests.bench.nri [--rounds 100]

A daemon of the benchmark's own; containers are made, started, ended and removed in one pod, in turn without a plugin and
with one, which is a process of its own and reads no more of a request than it needs to answer it. The difference by the
number of requests is the cost of one: in time, with the ways there and back, and in processor time of the daemon, which
other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.bench.runtimes import isolate
from tests.harness.daemon import ROOT, Daemon
from tests.harness.kubelet import Kubelet, Pod, wait_until
from tests.harness.nri_plugin import NriPlugin
from tests.harness.rootfs import make_rootfs

MODULE = "tests.bench.nri"

REQUESTS = 7
"""CreateContainer, ValidateContainerAdjustment, PostCreateContainer, StartContainer, PostStartContainer, StopContainer and
RemoveContainer."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--idle", metavar="SOCKET", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.idle:
        Idle(options.idle).stay()
    else:
        print(measure(options.rounds))


class Idle(NriPlugin):
    """It wants all and does nothing; there is no thread for a request, for that would be what is measured."""

    def arrived(self, stream: int, request: dict[int, Any]) -> None:
        if request[2] in (b"Configure", b"Synchronize"):
            super().arrived(stream, request)
        else:
            self.send(1, stream, 2, b"")

    def stay(self) -> None:
        """Until the runtime has closed the connection."""
        with self, self.changed:
            while not self.closed:
                self.changed.wait()


def measure(rounds: int) -> str:
    """The table."""
    isolate()
    base = Path(tempfile.mkdtemp(prefix="crisp-bench-", dir="/var/tmp"))
    daemon = Daemon()
    daemon.config.write_text(daemon.config.read_text().replace('level = "debug"', 'level = "info"'))
    daemon.start()
    try:
        assert daemon.client is not None
        request = admin.AddRootfsRequest(name="localhost/busybox:bench", directory=str(make_rootfs(base)))
        kubelet = Kubelet(daemon, daemon.client.admin.AddRootfs(request).image_id)
        pod = kubelet.pod()
        assert daemon.process is not None
        pid = daemon.process.pid
        without: list[Life] = []
        with_plugin: list[Life] = []
        for _ in range(rounds // 10):
            without += [life(pod, pid) for _ in range(10)]
            with_plugin += beside(kubelet, lambda: [life(pod, pid) for _ in range(10)])
    finally:
        daemon.destroy()
        shutil.rmtree(base, ignore_errors=True)
    less, more = median(without), median(with_plugin)
    wall, processor = (more.wall - less.wall) / REQUESTS, (more.processor - less.processor) / REQUESTS
    return (
        "| a container's life | ms | daemon's processor time, ms |\n|---|---|---|\n"
        f"| without a plugin | {less.wall:.1f} | {less.processor:.1f} |\n"
        f"| with one | {more.wall:.1f} | {more.processor:.1f} |\n"
        f"| for each request | {wall:.2f} | {processor:.2f} |"
    )


class Life(NamedTuple):
    """What one container took, in milliseconds."""

    wall: float
    processor: float


def median(lives: list[Life]) -> Life:
    """Of each."""
    return Life(*(statistics.median(column) for column in zip(*lives, strict=True)))


def processor_time(pid: int) -> float:
    """Milliseconds of all threads."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e6


def life(pod: Pod, daemon: int) -> Life:
    """Make, start, end and remove a container."""
    begin, used = time.monotonic(), processor_time(daemon)
    container = pod.run("/bin/sleep", "1000")
    container.stop()
    container.remove()
    return Life((time.monotonic() - begin) * 1000, processor_time(daemon) - used)


def beside(kubelet: Kubelet, work: Callable[[], list[Life]]) -> list[Life]:
    """Do it while a plugin is there."""
    command = [sys.executable, "-m", MODULE, "--idle", kubelet.daemon.nri_socket]
    plugin = subprocess.Popen(command, cwd=ROOT)

    def ready() -> bool:
        info = kubelet.runtime.Status(cri.StatusRequest(verbose=True)).info["config"]
        return '"state": "ready"' in info

    try:
        wait_until(ready)
        return work()
    finally:
        plugin.kill()
        plugin.wait()
        wait_until(lambda: not ready())


if __name__ == "__main__":
    main()
