"""shim/oci_runtime.py: what runtimes say, made readable. The messages are crun 1.8's and runc 1.1's own."""

from __future__ import annotations

import json

import pytest

from proto.errors import Code
from shim.oci_runtime import ProcessError, Runtime, failure, last_error

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


@pytest.mark.parametrize(
    ("message", "command"),
    [
        (
            "runc create failed: unable to start container process: error during container init: error running "
            "createContainer hook #0: fork/exec /usr/bin/hook.sh: no such file or directory",
            "sh",
        ),
        ('error mounting "/data/executables" to rootfs at "/opt/executables": no such file or directory', "sh"),
        ("openat2 `opt/executables`: No such file or directory", "sh"),
        (
            "unable to apply cgroup configuration: failed to write 1: open /sys/fs/cgroup/pod/exec-1/cgroup.procs: "
            "no such file or directory",
            "pod",
        ),
        ("open exec fifo /run/runc/c/exec.fifo: no such file or directory", "run"),
        ('error mounting "/data" to rootfs at "/app/chdir": mkdir /run/x/rootfs/app: not a directory', "sh"),
    ],
)
def test_what_is_no_fault_of_the_command(message: str, command: str) -> None:
    """A container that is taken for one without a process is not created again."""
    error = failure(RUNTIME, "create", 1, json.dumps({"msg": message, "level": "error"}).encode(), command, "/app")
    assert not isinstance(error, ProcessError)


@pytest.mark.parametrize(
    "message",
    [
        "executable file `/bin/x` not found in $PATH: No such file or directory",
        "open executable: Permission denied",
        'runc create failed: unable to start container process: exec: "/bin/x": stat /bin/x: no such file or directory',
        'unable to start container process: error during container init: exec: "/bin/x": permission denied',
        "exec /bin/x: exec format error",
        "exec container process `/bin/x`: Exec format error",
        "chdir `/app`: Not a directory",
        'chdir to cwd ("/app") set in config.json failed: permission denied',
        "runc create failed: unable to start container process: error during container init: mkdir /app: not a directory",
    ],
)
def test_what_is_the_fault_of_the_command_or_its_directory(message: str) -> None:
    log = json.dumps({"msg": message, "level": "error"}).encode()
    assert isinstance(
        failure(RUNTIME, "create", 1, log, "/bin/x", "/app/below" if "mkdir" in message else "/app"), ProcessError
    )
