"""What tests rely on is set by tests/conftest.py, whoever starts them: nohup, cron, a build system, a terminal."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__)
HOSTILE = """
import os, resource, signal, sys
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGTERM))
os.umask(0o077)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.environ.update(LC_ALL="tlh_KX", TERM="dumb", NO_COLOR="1")
os.execv(sys.executable, [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "inherit", sys.argv[1]])
"""


def test_children_inherit_what_is_usual() -> None:
    program = "import os, signal, sys; print(signal.getsignal(2) is not signal.SIG_IGN, os.umask(0), sys.stdout.encoding)"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert child.stdout.split() == ["True", str(0o022), "utf-8"]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        assert signal.getsignal(number) is not signal.SIG_IGN
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1024
    assert "NO_COLOR" not in os.environ


@pytest.mark.timeout(120)
def test_also_when_tests_are_started_strangely() -> None:
    command = [sys.executable, "-c", HOSTILE, str(HERE)]
    done = subprocess.run(command, cwd=HERE.parents[2], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_test_that_hangs_is_ended_with_its_stack(tmp_path: Path) -> None:
    hanging = "import threading\ndef test_it():\n    threading.Event().wait()\n"
    (tmp_path / "test_hanging.py").write_text(hanging)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=1", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "Timeout" in done.stdout
    assert "threading.Event().wait()" in done.stdout + done.stderr
