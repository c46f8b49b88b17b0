"""Pods: start, teardown, ExecSync, how many a second, memory for each, and what a crowd of them costs."""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from proto import api_pb2 as cri
from tests.bench.runtimes import comm, cpu_seconds, pss
from tests.bench.subject import WORKLOAD, Pod, Subject, end_all, median, milliseconds

MIB = 1024 * 1024
FEW = 40
LISTS = 30
"""How often a list is asked for."""
IDLE_SECONDS = 20.0
STORM_SECONDS = 10.0

Rows = Iterator[tuple[str, float]]


def one_by_one(subject: Subject, number: int, rounds: int) -> Rows:
    """Start, ask and end one pod, as many times as there are rounds, beside `number - 1` others."""
    starts, execs, ends = [], [], []
    for _ in range(rounds):
        made: list[Pod] = []
        starts.append(milliseconds(functools.partial(_add_pod, subject, made)))
        execs.append(median(made[0].exec, 3))
        ends.append(milliseconds(made[0].end))
    yield f"pod start, pod {number}, ms", statistics.median(starts)
    yield f"ExecSync, pod {number}, ms", statistics.median(execs)
    yield f"teardown, pod {number}, ms", statistics.median(ends)


def _add_pod(subject: Subject, pods: list[Pod]) -> None:
    pods.append(subject.pod())


def at_once(subject: Subject, threads: int, count: int) -> Rows:
    """Lives of pods, some at once."""
    with ThreadPoolExecutor(threads) as pool:
        took = milliseconds(lambda: list(pool.map(lambda _: subject.pod().end(), range(count))))
    yield f"pods/s, {threads} at once", count / took * 1000


def small_pull(subject: Subject, rounds: int) -> Rows:
    """Pull the pods' image, of 1 MB compressed, anew. No pod may use it."""
    images, image = subject.client.images, cri.ImageSpec(image=subject.image)
    took = []
    for _ in range(rounds):
        images.RemoveImage(cri.RemoveImageRequest(image=image))
        took.append(milliseconds(lambda: images.PullImage(cri.PullImageRequest(image=image))))
    yield "pull of a small image, ms", statistics.median(took)


def crowd(subject: Subject, most: int, rounds: int) -> Rows:
    """Fill the node, and look at it on the way."""
    runtime, pods = subject.runtime, subject.pods(5)
    try:
        few = pss(runtime.processes(WORKLOAD))
        pods += subject.pods(FEW - len(pods))
        if few:
            more = pss(runtime.processes(WORKLOAD)) - few
            yield "memory per pod, MiB", more / (FEW - 5) / MIB
            yield "daemon, MiB", pss([p for p in runtime.processes(WORKLOAD) if "shim" not in comm(p)]) / MIB
        yield from lists(subject, FEW)
        for number in (most // 5, most * 3 // 5):
            pods += subject.pods(number - 1 - len(pods))
            yield from one_by_one(subject, number, rounds)
            if number == most // 5:
                yield from probes(subject, pods)
        if few:
            yield f"memory of all with {len(pods)} pods, MiB", pss(runtime.processes(WORKLOAD)) / MIB
        yield from idle(subject, len(pods))
        yield from restart(subject, pods)
        pods += subject.pods(most - len(pods))
        yield from lists(subject, most)
    finally:
        end_all(pods)


def lists(subject: Subject, count: int) -> Rows:
    """List calls with so many containers there."""
    runtime = subject.client.runtime
    assert len(runtime.ListContainers(cri.ListContainersRequest()).containers) == count
    yield f"ListContainers of {count}, ms", median(lambda: runtime.ListContainers(cri.ListContainersRequest()), LISTS)
    yield f"ListPodSandbox of {count}, ms", median(lambda: runtime.ListPodSandbox(cri.ListPodSandboxRequest()), LISTS)
    request = cri.ListContainerStatsRequest()
    assert len(runtime.ListContainerStats(request).stats) == count
    yield f"ListContainerStats of {count}, ms", median(lambda: runtime.ListContainerStats(request), LISTS)


def probes(subject: Subject, pods: list[Pod]) -> Rows:
    """Processor time of the whole node while each pod is probed once a second, without what it takes otherwise."""
    before = _busy_seconds(STORM_SECONDS)
    end = time.monotonic() + STORM_SECONDS

    def probe(number: int) -> None:
        time.sleep(number / len(pods))  # kubelets' probes are spread out
        while time.monotonic() < end:
            begin = time.monotonic()
            pods[number].exec()
            time.sleep(max(0.0, begin + 1 - time.monotonic()))

    with ThreadPoolExecutor(len(pods)) as pool:
        storm = pool.map(probe, range(len(pods)))
        taken = _busy_seconds(STORM_SECONDS)
        list(storm)
    yield f"{len(pods)} probes a second, ms of processor time a second", (taken - before) / STORM_SECONDS * 1000


def _busy_seconds(seconds: float) -> float:
    """Processor time of everything on the node in the next so many seconds."""

    def busy() -> float:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, file.readline().split()[1:])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")

    begin = busy()
    time.sleep(seconds)
    return busy() - begin


def start_up(subject: Subject, rounds: int) -> Rows:
    """From the start of a daemon without pods until its node is ready."""
    if subject.runtime.process is None:
        return
    took = []
    for _ in range(rounds):
        subject.runtime.terminate()
        took.append(milliseconds(lambda: subject.runtime.start().__exit__(None, None, None)))
    subject.client.runtime.Version(cri.VersionRequest(), wait_for_ready=True)
    yield "start of the daemon, ms", statistics.median(took)


def idle(subject: Subject, count: int) -> Rows:
    """CPU time of daemon and shims while nobody asks for anything."""
    processes = subject.runtime.processes(WORKLOAD)
    if not processes:
        return
    time.sleep(2)  # what the last call left to do
    before = cpu_seconds(processes)
    time.sleep(IDLE_SECONDS)
    taken = sum(seconds - before[pid] for pid, seconds in cpu_seconds(processes).items() if pid in before)
    yield f"idle CPU with {count} pods, ms a minute", taken / IDLE_SECONDS * 60_000


def restart(subject: Subject, pods: list[Pod]) -> Rows:
    """From the start of a new daemon until it lists all containers as running and execs in one."""
    if subject.runtime.process is None:
        return
    subject.runtime.terminate()

    def again() -> None:
        with subject.runtime.start() as client:
            found = client.runtime.ListContainers(cri.ListContainersRequest()).containers
            assert len(found) == len(pods), f"{len(found)} of {len(pods)} containers are there after a restart"
            assert all(container.state == cri.CONTAINER_RUNNING for container in found)
            client.runtime.ExecSync(cri.ExecSyncRequest(container_id=pods[0].container, cmd=["/bin/true"], timeout=30))

    yield f"restart with {len(pods)} pods, ms", milliseconds(again)
    subject.client.runtime.Version(cri.VersionRequest(), wait_for_ready=True)
