"""Containers that the OOM killer ends are OOMKilled, however soon systemd removes their cgroups."""

from __future__ import annotations

import itertools
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from proto import api_pb2 as cri
from tests.harness.kubelet import Kubelet, Pod
from tests.harness.waiting import WAIT_SECONDS

pytestmark = pytest.mark.root

KILLS = int(os.environ.get("CRISP_OOM_KILLS", "40"))
"""For each handler."""
AT_ONCE = 2
LOOK_SECONDS = 0.3
BATCH = 20
HOG = "dd if=/dev/zero of=/dev/null bs=64M"
COMMANDS = {
    "itself": f"exec {HOG}",
    "a child, and its parent goes with it": f"{HOG}; exit 1",
    "a child, and its parent succeeds": f"{HOG}; exit 0",
    "a child long before": f"{HOG}; sleep 0.2; exit 0",
}
INNOCENT = {
    "ends": ("exit 3", "Error"),
    "succeeds": ("true", "Completed"),
    "has a child that is killed": ("sh -c 'kill -9 $$'; exit $?", "Error"),
}


def life(pod: Pod, script: str) -> str:
    """The reason of its end."""
    wanted = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c", attempt=next(pod.attempts)))
    resources = wanted.linux.resources
    resources.memory_limit_in_bytes = resources.memory_swap_limit_in_bytes = 16 << 20
    # Building the filter for each takes an emulated machine longer than all the rest.
    wanted.linux.security_context.seccomp.profile_type = cri.SecurityProfile.Unconfined
    container = pod.run("/bin/sh", "-c", script, config=wanted)
    deadline = time.monotonic() + WAIT_SECONDS
    while not (status := container.status()).finished_at:
        assert time.monotonic() < deadline, f"{script!r} does not end"
        time.sleep(LOOK_SECONDS)
    container.remove()
    return status.reason


@pytest.mark.timeout(0)
@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_every_kill_has_its_reason(kubelet: Kubelet, handler: str) -> None:
    kubelet.need_handler(handler)
    pods = [kubelet.pod(handler=handler) for _ in range(AT_ONCE)]
    names = list(itertools.islice(itertools.cycle(COMMANDS), KILLS))
    reasons: list[str] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for begin in range(0, KILLS, BATCH):
            batch = names[begin : begin + BATCH]
            reasons += pool.map(life, itertools.cycle(pods), [COMMANDS[name] for name in batch])
            wrong = [(name, reason) for name, reason in zip(names, reasons, strict=False) if reason != "OOMKilled"]
            print(f"{handler}: {len(reasons) - len(wrong)} of {len(reasons)} kills with their reason", flush=True)
            assert wrong == []


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_neighbours_of_who_is_killed_are_not(kubelet: Kubelet, handler: str) -> None:
    """In the same pod, at the same time: who ends by himself has his own reason."""
    kubelet.need_handler(handler)
    pod = kubelet.pod(handler=handler)
    for script, reason in INNOCENT.values():
        with ThreadPoolExecutor(2) as pool:
            killed = pool.submit(life, pod, f"sleep 0.3; exec {HOG}")
            other = pool.submit(life, pod, f"sleep 2; {script}")
            assert (killed.result(), other.result()) == ("OOMKilled", reason)
