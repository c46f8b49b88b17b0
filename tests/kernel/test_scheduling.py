"""Scheduler and I/O priority of another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kernel import scheduling, syscalls

PROGRAM = """
import sys, threading, time
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One with two threads."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        yield child
        child.kill()


def threads(process: subprocess.Popen[bytes]) -> list[int]:
    found = [int(name) for name in os.listdir(f"/proc/{process.pid}/task")]
    assert len(found) == 2
    return found


def io_priority(thread: int) -> str:
    return subprocess.check_output(["ionice", "-p", str(thread)], text=True).strip()


def test_io_priority_of_all_threads(process: subprocess.Popen[bytes]) -> None:
    scheduling.set_io_priority(process.pid, "IOPRIO_CLASS_BE", 6)
    assert {io_priority(thread) for thread in threads(process)} == {"best-effort: prio 6"}
    scheduling.set_io_priority(process.pid, "IOPRIO_CLASS_IDLE", 0)
    assert {io_priority(thread) for thread in threads(process)} == {"idle"}


def test_scheduler_of_all_threads(process: subprocess.Popen[bytes]) -> None:
    scheduling.set_scheduler(process.pid, {"policy": "SCHED_BATCH", "nice": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK"]})
    for thread in threads(process):
        assert os.sched_getscheduler(thread) == os.SCHED_BATCH | os.SCHED_RESET_ON_FORK
        assert os.getpriority(os.PRIO_PROCESS, thread) == 7
    scheduling.set_scheduler(process.pid, {"policy": "SCHED_IDLE"})
    assert {os.sched_getscheduler(thread) for thread in threads(process)} == {os.SCHED_IDLE}


def test_the_kernels_answer_comes_through(process: subprocess.Popen[bytes]) -> None:
    with pytest.raises(OSError, match="sched_setattr: "):
        scheduling.set_scheduler(process.pid, {"policy": "SCHED_OTHER", "priority": 50})
    with pytest.raises(OSError, match="ioprio_set: "):
        syscalls.set_io_priority(process.pid, 5 << 13)  # there is no such class
