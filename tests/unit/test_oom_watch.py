"""shim/oom.py on directories that are written as the kernel writes groups; the real ones are killed in the guest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kernel.cgroups import Hierarchies, Mode
from shim.loop import Loop
from shim.oom import OomWatch


class Pod:
    """A pod's group with the groups of two containers."""

    def __init__(self, base: Path) -> None:
        self.base = base / "pod"
        self.loop = Loop()
        hierarchies = Hierarchies(Mode.V2, {"memory": str(base)}, str(base))
        self.own, self.other = self.base / "own", self.base / "other"
        for directory in (self.own, self.other):
            directory.mkdir(parents=True)
        self.total = 0
        for directory in (self.base, self.own, self.other):
            self._write(directory, 0)
        self.watch = OomWatch(self.loop, hierarchies.group("pod/own"))
        self.watch.begin()

    def _write(self, directory: Path, count: int) -> None:
        (directory / "memory.events").write_text(f"low 0\nhigh 0\nmax 7\noom 1\noom_kill {count}\noom_group_kill 0\n")

    def kill(self, victim: Path) -> None:
        """As the kernel counts: the victim's group, then those above."""
        self._write(victim, int((victim / "memory.events").read_text().split()[-3]) + 1)
        self.total += 1
        self._write(self.base, self.total)

    def notice(self) -> None:
        """Let the watch have what the kernel has told until now."""
        self.loop.spawn(self._soon_stop())
        self.loop._running = True
        self.loop.run()

    async def _soon_stop(self) -> None:
        await self.loop.sleep(0.02)
        self.loop.stop()

    def end(self, *, removed: bool) -> bool:
        if removed:
            shutil.rmtree(self.own)
        return self.watch.end()


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("noticed", [False, True])
def test_a_kill_is_never_lost(pod: Pod, noticed: bool, removed: bool) -> None:
    pod.kill(pod.own)
    if noticed:
        pod.notice()
    assert pod.end(removed=removed)


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("noticed", [False, True])
def test_a_neighbours_kill_is_its_own(pod: Pod, noticed: bool, removed: bool) -> None:
    pod.kill(pod.other)
    if noticed:
        pod.notice()
    assert not pod.end(removed=removed)


def test_a_neighbour_that_has_gone_after_its_kill(pod: Pod) -> None:
    pod.kill(pod.other)
    pod.notice()
    shutil.rmtree(pod.other)
    assert not pod.end(removed=True)


def test_both_are_killed(pod: Pod) -> None:
    pod.kill(pod.other)
    pod.kill(pod.own)
    assert pod.end(removed=True)


def test_a_pod_without_kills(pod: Pod) -> None:
    assert not pod.end(removed=True)


def test_a_kill_long_before_the_end(pod: Pod) -> None:
    pod.kill(pod.own)
    pod.notice()
    pod.kill(pod.other)
    assert pod.end(removed=True)


def test_what_was_killed_before_the_container_came(tmp_path: Path) -> None:
    pod = Pod(tmp_path)
    pod.kill(pod.other)
    pod.kill(pod.own)
    pod.watch.end()
    (pod.own / "memory.events").write_text("oom_kill 0\n")
    later = OomWatch(pod.loop, Hierarchies(Mode.V2, {"memory": str(tmp_path)}, str(tmp_path)).group("pod/own"))
    later.begin()
    shutil.rmtree(pod.own)
    assert not later.end()
