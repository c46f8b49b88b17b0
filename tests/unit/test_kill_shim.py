"""runtime/shims/client.py kill_shim: only who has the lock open is killed, whomever /proc/locks names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from runtime.shims.client import kill_shim

HOLD = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
if sys.argv[2] == "handed on":
    if os.fork() == 0:
        sys.stdout.close(); os.close(1)
        time.sleep(1000)
    os.close(fd)
print("held", flush=True)
time.sleep(1000)
"""


def hold(lock: Path, how: str) -> subprocess.Popen[bytes]:
    lock.touch()
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock), how], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    process.stdout.close()
    return process


def test_the_holder_is_killed(tmp_path: Path) -> None:
    process = hold(tmp_path / "shim.lock", "kept")
    kill_shim(str(tmp_path))
    assert process.wait(30) == -9


def test_who_is_only_named_is_not(tmp_path: Path) -> None:
    """It took the lock, and another process has it by now; just so would an innocent one be named that has its old pid."""
    process = hold(tmp_path / "shim.lock", "handed on")
    try:
        kill_shim(str(tmp_path))
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def test_no_lock_and_no_bundle(tmp_path: Path) -> None:
    kill_shim(str(tmp_path))
    kill_shim(str(tmp_path / "gone"))
    (tmp_path / "shim.lock").touch()
    kill_shim(str(tmp_path))
