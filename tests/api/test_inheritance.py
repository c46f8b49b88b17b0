"""What a container's processes do not inherit from the daemon, the fork server and the shim: shim/inheritance.py."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet

pytestmark = pytest.mark.root

# A daemon whose service gives it everything that a service can.
PECULIAR = """
import ctypes, os, signal, sys
os.umask(0o077)
os.setpriority(os.PRIO_PROCESS, 0, 7)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
libc = ctypes.CDLL(None)
libc.syscall(ctypes.c_long({"x86_64": 251}.get(os.uname().machine, 30)), 1, 0, 3 << 13)
libc.prctl(29, ctypes.c_ulong(77777), 0, 0, 0)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGALRM])
signal.signal(signal.SIGHUP, signal.SIG_IGN)
open("/proc/self/oom_score_adj", "w").write("100")
os.environ["OF_THE_DAEMON"] = "secret"
os.execv(sys.argv[1], sys.argv[1:])
"""

TELL = """
grep -E '^(SigBlk|SigIgn|Cpus_allowed_list)' /proc/self/status
echo "nice $(cut -d ' ' -f 19 /proc/self/stat) policy $(cut -d ' ' -f 41 /proc/self/stat) umask $(umask)"
echo "slack $(cat /proc/self/timerslack_ns 2>/dev/null) io $(ionice -p $$) files $(ulimit -n) core $(ulimit -c)"
echo "score $(cat /proc/self/oom_score_adj)"
env | grep -v -E '^(HOSTNAME|HOME|PWD|SHLVL|PATH|TERM|OLDPWD|_)='
readlink /proc/self/ns/net
true
"""


@pytest.fixture(scope="module")
def kubelets(rootfs: Path) -> Iterator[tuple[Kubelet, Kubelet]]:
    """One on a peculiar daemon, one on an ordinary one."""
    daemons = [Daemon(), Daemon()]
    daemons[0].program = [sys.executable, "-c", PECULIAR, *daemons[0].program]
    found = []
    for daemon in daemons:
        daemon.start()
        found.append(Kubelet.on(daemon, rootfs))
    yield found[0], found[1]
    for daemon in daemons:
        daemon.remove_all()
        left = daemon.leftovers()
        daemon.destroy()
        assert left == []


def handlers(kubelet: Kubelet) -> list[str]:
    return [handler.name for handler in kubelet.runtime.Status(cri.StatusRequest()).runtime_handlers if handler.name]


def test_processes_are_alike_whatever_the_daemon_is(kubelets: tuple[Kubelet, Kubelet]) -> None:
    """A container and an exec of it, of each handler, on both daemons: all that they tell is the same."""
    for handler in handlers(kubelets[0]):
        told = []
        for kubelet in kubelets:
            pod = kubelet.pod(handler=handler, network=cri.NODE)
            config = cri.ContainerConfig()
            config.linux.resources.oom_score_adj = 500
            container = pod.run("/bin/sh", "-c", TELL + "echo told; sleep 1000", config=config)
            while "told" not in container.output():
                pass
            told += [_usual(text) for text in (container.output().replace("told\n", ""), container.sh(TELL))]
        assert "score 500\n" in told[0]
        assert "umask 0022\n" in told[0]
        if handler == "runc":
            # Go raises the limit of open files when a program starts, and older runc gives an exec now that, now its own.
            told = [re.sub(r"files \d+", "files", text) for text in told]
        assert set(told) == {told[0]}, handler


def _usual(told: str) -> str:
    """Without signals 32 and 33, the C library's own: make leaves them ignored, and only a raw system call changes that."""
    return re.sub(r"(?<=SigIgn:\t)[0-9a-f]{16}", lambda mask: f"{int(mask[0], 16) & ~(0b11 << 31):016x}", told)


def test_a_score_that_nobody_names_is_not_the_shims(kubelets: tuple[Kubelet, Kubelet]) -> None:
    """Nothing asked for is 0, or what the daemon may go down to; not the shim's, which is to be the last to be killed."""
    kubelet = kubelets[1]
    expected = max(0, int(Path("/proc/self/oom_score_adj").read_text()) if not may_lower() else 0)
    for handler in handlers(kubelet):
        container = kubelet.pod(handler=handler).run("sleep", "1000")
        scores = {container.sh("cat /proc/1/oom_score_adj"), container.sh("cat /proc/self/oom_score_adj")}
        assert scores == {f"{expected}\n"}, handler


def test_an_exec_has_the_score_after_an_update(kubelets: tuple[Kubelet, Kubelet]) -> None:
    config = cri.ContainerConfig()
    config.linux.resources.oom_score_adj = 500
    container = kubelets[1].pod().run("sleep", "1000", config=config)
    container.update(oom_score_adj=700)
    assert container.sh("cat /proc/1/oom_score_adj") == "700\n"
    # runc gives it the old one, which the shim corrects at once.
    container.sh("until [ $(cat /proc/self/oom_score_adj) = 700 ]; do sleep 0.01; done")


def may_lower() -> bool:
    mask = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(mask.split()[1], 16) >> 24 & 1) and os.geteuid() == 0
