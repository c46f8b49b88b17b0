"""ExecSync, the CRI log, ReopenContainerLog."""

from __future__ import annotations

import os
import re

import grpc
import pytest

from proto import api_pb2 as cri
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

MIB = 1024 * 1024


def test_exec_sync(kubelet: Kubelet) -> None:
    wanted = cri.ContainerConfig(envs=[cri.KeyValue(key="A", value=b"1")], working_dir="/tmp")
    container = kubelet.pod().run("/bin/sleep", "100", config=wanted)
    reply = container.exec("/bin/sh", "-c", "echo $A; pwd; echo err >&2; exit 9")
    assert (reply.stdout, reply.stderr, reply.exit_code) == (b"1\n/tmp\n", b"err\n", 9)
    assert container.exec("/bin/sh", "-c", "kill -9 $$").exit_code == 137


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_exec_timeout_kills_the_whole_tree(kubelet: Kubelet, handler: str) -> None:
    kubelet.need_handler(handler)
    container = kubelet.pod(handler=handler).run("/bin/sleep", "100")
    with pytest.raises(grpc.RpcError, match="timed out") as caught:
        container.exec("/bin/sh", "-c", "(setsid sleep 777 &) ; setsid sleep 777 & sleep 777", timeout=1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: "777" not in container.sh("ps -o args"))
    assert container.status().state == cri.CONTAINER_RUNNING


def test_exit_code_wins_over_a_grandchild_that_holds_the_pipe(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "100")
    reply = container.exec("/bin/sh", "-c", "echo early; sleep 60 & exit 4", timeout=50)
    assert (reply.exit_code, reply.stdout) == (4, b"early\n")
    assert "sleep 60" in container.sh("ps -o args")


def test_exec_keeps_16_mib_and_lets_the_command_run_on(kubelet: Kubelet) -> None:
    """The reply has to fit into what a client reads: the kubelet's limit is 16 MiB in all."""
    container = kubelet.pod().run("/bin/sleep", "100")
    reply = container.exec("/bin/sh", "-c", "head -c 12000000 /dev/zero; echo done >&2")
    assert len(reply.stdout) == 12000000
    assert reply.stderr == b"done\n"
    reply = container.exec("/bin/sh", "-c", "head -c 20000000 /dev/zero; touch /tmp/went-on")
    assert 15 * MIB < len(reply.stdout) <= 16 * MIB
    container.sh("test -e /tmp/went-on")


def test_bad_execs(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    container = pod.run("/bin/sleep", "100")
    with pytest.raises(grpc.RpcError, match="no-such"):
        container.exec("/bin/no-such")
    with pytest.raises(grpc.RpcError, match="without a command"):
        container.exec()
    with pytest.raises(grpc.RpcError, match="not running") as caught:
        pod.create("/bin/true").exec("/bin/true")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as caught:
        kubelet.runtime.ExecSync(cri.ExecSyncRequest(container_id="f" * 64, cmd=["/bin/true"]))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_log_format(kubelet: Kubelet) -> None:
    container = kubelet.pod().shell(
        "printf 'a\\n\\nlast without newline'; head -c 40000 /dev/zero | tr '\\0' x >&2; echo >&2"
    )
    with open(container.status().log_path) as file:
        for line in file:
            assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) [PF] ", line)
    stdout = [(tag, text) for stream, tag, text in container.log_lines() if stream == "stdout"]
    assert stdout == [("F", "a"), ("F", ""), ("P", "last without newline")]
    stderr = [(tag, len(text)) for stream, tag, text in container.log_lines() if stream == "stderr"]
    assert stderr == [("P", 16384), ("P", 16384), ("F", 40000 - 2 * 16384)]


def test_log_rotation_loses_nothing(kubelet: Kubelet) -> None:
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; sleep 100"
    container = kubelet.pod().run("/bin/sh", "-c", script)
    path = container.status().log_path
    rotated = []
    for number in range(5):
        os.rename(path, f"{path}.{number}")
        rotated.append(f"{path}.{number}")
        container.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container.id))
        assert os.path.exists(path)

    def lines() -> list[str]:
        found = []
        for name in (*rotated, path):
            with open(name) as file:
                found += [line.rstrip("\n").split(" ", 3)[3] for line in file]
        return found

    wait_until(lambda: len(lines()) == 2000)
    assert lines() == [f"line {i}" for i in range(2000)]


def test_reopen_needs_a_running_container(kubelet: Kubelet) -> None:
    container = kubelet.pod().shell("true")
    path = container.status().log_path
    os.unlink(path)
    with pytest.raises(grpc.RpcError, match="not running"):
        container.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container.id))
    assert not os.path.exists(path)
