"""Groups as their processes make them: threaded, and very deep. What is counted and killed is all that is in them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernel import cgroups

pytestmark = pytest.mark.root


@pytest.fixture
def group() -> Iterator[Path]:
    """A group of the test's own in the cgroup2 hierarchy."""
    unified = cgroups.detect().unified
    if not unified:
        pytest.skip("this host has no cgroup2 mount")
    directory = Path(unified) / f"crisp-test-tree-{os.getpid()}"
    directory.mkdir()
    yield directory
    deadline = time.monotonic() + 20
    while not (cgroups.kill_tree(str(directory)) and cgroups.remove_tree(str(directory))):
        assert time.monotonic() < deadline


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One with a second thread."""
    script = "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start(); print(flush=True)"
    running = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.readline()
    yield running
    running.kill()
    running.wait()
    running.stdout.close()


def put(directory: Path, pid: int) -> None:
    (directory / "cgroup.procs").write_text(str(pid))


def test_a_threaded_group_below(group: Path, process: subprocess.Popen[bytes]) -> None:
    put(group, process.pid)
    (group / "t").mkdir()
    (group / "t" / "cgroup.type").write_text("threaded")
    tids = [int(name) for name in os.listdir(f"/proc/{process.pid}/task") if int(name) != process.pid]
    (group / "t" / "cgroup.threads").write_text(str(tids[0]))
    assert cgroups.tree_procs(str(group)) == {process.pid}
    assert cgroups.tree_procs(str(group / "t")) == {process.pid}
    while not cgroups.kill_tree(str(group)):
        pass
    assert process.wait(20) == -9


def test_a_group_that_is_threaded_itself_is_killed(group: Path, process: subprocess.Popen[bytes]) -> None:
    inner = group / "container"
    inner.mkdir()
    put(group, process.pid)
    (inner / "cgroup.type").write_text("threaded")
    put(inner, process.pid)
    assert cgroups.tree_procs(str(inner)) == {process.pid}
    deadline = time.monotonic() + 20
    while not cgroups.kill_tree(str(inner)):
        assert time.monotonic() < deadline
    assert process.wait(20) == -9


def test_a_deep_tree_is_walked_without_recursion(group: Path, process: subprocess.Popen[bytes]) -> None:
    deepest = group
    for _ in range(1100):
        deepest /= "d"
        os.mkdir(deepest)
    put(deepest, process.pid)
    assert cgroups.tree_procs(str(group)) == {process.pid}
    while not cgroups.kill_tree(str(group)):
        pass
    assert process.wait(20) == -9
    assert cgroups.remove_tree(str(group))
    group.mkdir()


def test_groups_that_are_made_at_once_take_processes(process: subprocess.Popen[bytes]) -> None:
    """A fresh cpuset of version 1 takes none and hands nothing down: who made the one above may not have come to that."""
    hierarchies = cgroups.detect()
    top = hierarchies.group(f"crisp-test-{secrets.token_hex(4)}")
    below = hierarchies.group(f"{top.path}/half/made/group")
    try:
        for root in hierarchies.roots():
            Path(root, top.path, "half").mkdir(parents=True)
        below.create()
        below.enter(process.pid)
        assert below.procs() == {process.pid}
        with ThreadPoolExecutor(8) as threads:
            for number in range(20):
                each = [hierarchies.group(f"{top.path}/{number}/shims") for _ in range(8)]
                list(threads.map(cgroups.Group.create, each))
                each[0].enter(process.pid)
    finally:
        process.kill()
        process.wait()
        assert top.remove()


def test_what_cannot_be_written_is_named(group: Path) -> None:
    with pytest.raises(OSError, match=f"Invalid argument: '{group}/cgroup.procs'"):
        cgroups.write(f"{group}/cgroup.procs", "no number")
