"""shim/oci_runtime.py: what runtimes say, made readable. The messages are crun 1.8's and runc 1.1's own."""

from __future__ import annotations

import pytest

from proto.errors import Code
from shim.oci_runtime import Runtime, failure, last_error

RUNTIME = Runtime("crun", "/usr/bin/crun", "/run/crisp/oci", systemd_cgroup=False)
CRUN_MISSING = b'{"msg":"executable file `nosuch` not found in $PATH: No such file or directory","level":"error","time":"x"}'
RUNC_MISSING = (
    b'{"level":"error","msg":"runc create failed: unable to start container process: exec: \\"nosuch\\": '
    b'executable file not found in $PATH","time":"x"}'
)


def test_arguments() -> None:
    assert RUNTIME.command("start", "abc", log="/l") == [
        *("/usr/bin/crun", "--root", "/run/crisp/oci", "--log", "/l", "--log-format", "json"),
        *("start", "abc"),
    ]
    assert "--systemd-cgroup" in RUNTIME._replace(systemd_cgroup=True).command("start", "abc", log="/l")


@pytest.mark.parametrize("log", [CRUN_MISSING, RUNC_MISSING])
def test_missing_command(log: bytes) -> None:
    error = failure(RUNTIME, "create", 1, log, "nosuch")
    assert error.code is Code.FAILED_PRECONDITION
    assert error.message.startswith('exec: "nosuch": executable file not found in $PATH')


def test_last_error_skips_what_is_no_error() -> None:
    assert last_error(b'{"level":"error","msg":"bad"}\n{"level":"info","msg":"by the way"}\n') == "bad"
    assert last_error(b"plain words\n") == "plain words"
    assert last_error(b"[1]\n") == ""


def test_silence() -> None:
    assert "exit code 3 and without a word" in failure(RUNTIME, "start", 3, b"").message
