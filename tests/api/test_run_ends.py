"""How what `crisp run` has begun ends or goes on: killed clients, daemons that are started anew, detach keys, `restart`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from runtime.cli import lifecycle, run, run_logs
from runtime.cli.lifecycle import container_config, sandbox_config
from runtime.client import Client
from runtime.host import followers
from tests.api.test_command import IMAGE, command, crisp, logs, pods
from tests.api.test_docker_names import said, until
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import WAIT_SECONDS, wait_until

pytestmark = pytest.mark.root

CRICTL = os.environ.get("CRISP_CRICTL") or shutil.which("crictl")


def containers(kubelet: Kubelet) -> dict[str, str]:
    """Names and ids."""
    return {item.metadata.name: item.id for item in kubelet.runtime.ListContainers(cri.ListContainersRequest()).containers}


def test_what_nobody_waits_for_is_removed_at_its_end(kubelet: Kubelet, rootfs: Path) -> None:
    """Whoever began it is killed or has left: it goes on as docker's does, and the daemon removes it, also a new one."""
    before = set(pods(kubelet))
    kept = kubelet.pod()
    words = ["run", "--name", "killed", "--rootfs", str(rootfs), "/bin/sh", "-c", "echo begun; sleep 1000"]
    with subprocess.Popen(command(kubelet, *words), stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"begun\n"
        running.kill()
    [left] = logs(kubelet)
    said(kubelet, "run", "-d", "--rm", "--name", "gone", IMAGE, "/bin/true")
    said(kubelet, "run", "-d", "--rm", "--name", "beside", "--pod", kept.id, IMAGE, "/bin/true")
    assert {"killed", "gone"} <= set(pods(kubelet)), "it goes on, and its exit code can be asked for"
    assert said(kubelet, "wait", "gone", "beside") == "0\n0\n"
    said(kubelet, "kill", "killed")
    kubelet.daemon.kill()
    kubelet.daemon.start()
    wait_until(lambda: set(pods(kubelet)) == before | {kept.config.metadata.name})
    wait_until(lambda: not containers(kubelet))
    assert left.exists()
    said(kubelet, "run", IMAGE, "/bin/true")
    assert logs(kubelet) == [], "the next run has swept"
    tags = [tag for image in kubelet.images.ListImages(cri.ListImagesRequest()).images for tag in image.repo_tags]
    assert run_logs.rootfs_image(left.name) not in tags


def test_a_new_daemon_goes_on_showing(kubelet: Kubelet, tmp_path: Path) -> None:
    """All of the output, once, and the exit code."""
    script = "seq 1 20000; until test -e /flag/over; do sleep 0.05; done; seq 20001 40000; exit 7"
    for words in (["run"], ["run", "-i"]):
        with subprocess.Popen(
            command(kubelet, *words, "-v", f"{tmp_path}:/flag", IMAGE, "/bin/sh", "-c", script),
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
        ) as running:
            assert running.stdout is not None
            seen = [int(running.stdout.readline()) for _ in range(10_000)]
            kubelet.daemon.kill()
            kubelet.daemon.start()
            (tmp_path / "over").touch()
            seen += map(int, running.stdout.read().split())
            assert (running.wait(WAIT_SECONDS), seen == list(range(1, 40_001))) == (7, True)
        (tmp_path / "over").unlink()
    assert logs(kubelet) == []


def test_keys_leave_a_terminal_and_come_back(kubelet: Kubelet) -> None:
    ours, theirs = pty.openpty()
    words = command(
        kubelet,
        "run",
        "-it",
        "--rm",
        "--name",
        "shell",
        IMAGE,
        "/bin/sh",
        "-c",
        "echo begun; while read x; do echo got $x; done",
    )
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as running:
        until(ours, b"begun")
        kubelet.daemon.kill()
        kubelet.daemon.start()
        until(ours, b"the daemon was away")
        os.write(ours, b"\x10a\n")
        assert b"got" in until(ours, b"got \x10a")
        os.write(ours, b"\x10")
        os.write(ours, b"\x11")
        assert running.wait(WAIT_SECONDS) == 0
    assert "shell" in pods(kubelet)
    words = command(kubelet, "attach", "--detach-keys", "ctrl-a,d", "shell")
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as attached:
        os.write(ours, b"more\n")
        until(ours, b"got more")
        os.write(ours, b"\x01d")
        assert attached.wait(WAIT_SECONDS) == 0
    words = command(kubelet, "exec", "-it", "shell", "/bin/sh")
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as inside:
        os.write(ours, b"echo in$((1+1))\n")
        until(ours, b"in2")
        os.write(ours, b"\x10\x11")
        assert inside.wait(WAIT_SECONDS) == 0
    said(kubelet, "stop", "-t", "0", "shell")
    assert ("shell" in pods(kubelet), logs(kubelet)) == (False, [])
    os.close(ours)
    os.close(theirs)


def test_keys_leave_what_exec_runs(kubelet: Kubelet) -> None:
    """It goes on as docker's does: nobody reads what it writes, and not even the daemon that it was begun by is there."""
    script = 'echo begun; read x; echo "<$x>"; until test -e /over; do seq 1 10000; done; tty > /done; exec sleep 1000'
    for number, (keys, halves) in enumerate(((["--detach-keys", "ctrl-a,d"], (b"\x01", b"d")), ([], (b"\x10", b"\x11")))):
        said(kubelet, "run", "-d", "--name", f"left{number}", IMAGE, "/bin/sleep", "1000")
        ours, theirs = pty.openpty()
        before = termios.tcgetattr(theirs)
        words = command(kubelet, "exec", "-it", *keys, f"left{number}", "/bin/sh", "-c", script)
        with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as running:
            until(ours, b"begun")
            os.write(ours, halves[0])
            os.write(ours, b"z\n")
            until(ours, b"<" + halves[0] + b"z>")
            until(ours, b"10000")
            os.write(ours, halves[0])
            until(ours, b"10000")  # the keys come in two pieces
            os.write(ours, halves[1])
            with ThreadPoolExecutor(1) as reader:
                reading = reader.submit(rest, ours)
                assert running.wait(WAIT_SECONDS) == 0
                assert termios.tcgetattr(theirs) == before
                os.close(theirs)
                reading.result(WAIT_SECONDS)
        os.close(ours)
    kubelet.daemon.kill()
    kubelet.daemon.start()
    for name in ("left0", "left1"):
        said(kubelet, "exec", name, "touch", "/over")
        wait_until(lambda: done(kubelet, name))  # noqa: B023
        assert "sleep 1000" in said(kubelet, "top", name).splitlines()[-1]
        said(kubelet, "rm", "-f", name)


def test_exec_for_nobody(kubelet: Kubelet) -> None:
    said(kubelet, "run", "-d", "--name", "busy", IMAGE, "/bin/sleep", "1000")
    for number, words in enumerate((["-d"], ["-dit"])):
        script = f"seq 1 50000; echo $A > /done{number}; exec sleep 200{number}"
        assert said(kubelet, "exec", *words, "-e", "A=b", "busy", "/bin/sh", "-c", script) == ""
    kubelet.daemon.kill()
    kubelet.daemon.start()
    wait_until(
        lambda: said(kubelet, "exec", "busy", "/bin/sh", "-c", "cat /done* 2>/dev/null || true").split() == ["b", "b"]
    )
    wait_until(lambda: {"2000", "2001"} <= set(said(kubelet, "top", "busy").split()))
    for path, code in (("/no/such", 127), ("/etc/passwd", 126)):
        refused = crisp(kubelet, "exec", "-d", "busy", path)
        assert (refused.returncode, b"crisp: exec: " in refused.stderr) == (code, True), refused
    said(kubelet, "rm", "-f", "busy")


def done(kubelet: Kubelet, name: str) -> bool:
    return crisp(kubelet, "exec", name, "test", "-s", "/done").returncode == 0


def rest(terminal: int) -> None:
    """Read all that is written to a terminal yet, for who writes there waits for it."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 65536):
            pass


def test_restart(kubelet: Kubelet, tmp_path: Path) -> None:
    """The same again under the same name, and what it has written is gone; the log goes on."""
    script = "test -e /written && echo old; touch /written; trap 'exit 3' TERM; echo run $A; while :; do sleep 0.05; done"
    words = ["-e", "A=b c", "-v", f"{tmp_path}:/data:ro", "-m", "64M", "--tmpfs", "/scratch", "--ulimit", "core=0"]
    first = said(kubelet, "run", "-d", "--name", "again", *words, IMAGE, "/bin/sh", "-c", script).strip()
    before = config(kubelet, first)
    [log] = [directory / "again.log" for directory in logs(kubelet)]
    wait_until(lambda: log.read_text().count("run b c") == 1)
    assert said(kubelet, "restart", "-t", "5", "again") == "again\n"
    second = containers(kubelet)["again"]
    assert second != first
    wait_until(lambda: log.read_text().count("run b c") == 2)
    assert "old" not in log.read_text()
    assert config(kubelet, second) == before | {"metadata": {"name": "again", "attempt": 1}}
    assert said(kubelet, "exec", "again", "/bin/sh", "-c", "ulimit -c; grep -c /scratch /proc/mounts").split() == ["0", "1"]
    said(kubelet, "stop", "-t", "5", "again")
    assert b"`crisp restart` makes it anew" in crisp(kubelet, "start", "again").stderr
    said(kubelet, "restart", "again")
    assert said(kubelet, "ps", "-f", "name=again", "--format", "{{.Attempt}} {{.State}}") == "2 running\n"
    refused = crisp(kubelet, "run", "--name", "again", IMAGE, "/bin/true")
    assert (refused.returncode, b"the name again is taken" in refused.stderr) == (125, True), refused
    # What cannot be made anew stays as it was.
    said(kubelet, "commit", "again", "localhost/once:1")
    said(kubelet, "run", "-d", "--pod", "again", "--name", "once", "localhost/once:1", "/bin/true")
    said(kubelet, "rmi", "localhost/once:1")
    kept = containers(kubelet)
    refused = crisp(kubelet, "restart", "once", "nobody")
    assert (refused.returncode, b"not on this node" in refused.stderr) == (1, True), refused
    assert b"no such container: nobody" in refused.stderr
    assert containers(kubelet) == kept
    said(kubelet, "pod", "stop", "again")
    refused = crisp(kubelet, "restart", "again")
    assert (refused.returncode, b"not ready" in refused.stderr) == (1, True), refused
    said(kubelet, "rm", "again", "once")
    assert logs(kubelet) == []


def config(kubelet: Kubelet, container: str) -> dict[str, Any]:
    """What a container was made of."""
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    found: dict[str, Any] = json.loads(kubelet.runtime.ContainerStatus(request).info["info"])["config"]
    return found


@pytest.mark.skipif(CRICTL is None, reason="no crictl: put it on PATH, or name it with CRISP_CRICTL")
def test_crictl_and_crisp_see_the_same(kubelet: Kubelet, tmp_path: Path) -> None:
    def crictl(*words: str) -> str:
        base = [
            str(CRICTL),
            "-c",
            "/dev/null",
            "-r",
            f"unix://{kubelet.daemon.socket}",
            "-i",
            f"unix://{kubelet.daemon.socket}",
        ]
        done = subprocess.run([*base, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (words, done)
        return done.stdout

    # What crisp has made.
    words = ["--tmpfs", "/run", "--init", "--add-host", "db:10.1.2.3", "--shm-size", "1M"]
    key = said(kubelet, "run", "-d", "--name", "ours", *words, IMAGE, "/bin/sh", "-c", "echo hello; sleep 1000").strip()
    pod = crictl("pods", "-q", "--name", "ours").strip()
    assert key in crictl("ps", "-q", "--no-trunc")
    assert json.loads(crictl("inspect", key))["info"]["config"]["metadata"]["name"] == "ours"
    assert json.loads(crictl("inspectp", pod))["status"]["annotations"]["io.crisp.shm-size"] == str(1 << 20)
    wait_until(lambda: crictl("logs", key) == "hello\n")
    assert crictl("exec", key, "cat", "/proc/1/comm") == "crisp-pause\n"
    crictl("stop", "-t", "0", key)
    crictl("rm", key)
    crictl("rmp", "-f", pod)
    assert "ours" not in pods(kubelet)
    said(kubelet, "run", IMAGE, "/bin/true")
    assert logs(kubelet) == [], "the logs of a pod that crictl has removed"
    # What crictl has made.
    sandbox = {
        "metadata": {"name": "theirs", "uid": "u1", "namespace": "default"},
        "log_directory": str(tmp_path),
        "annotations": {"io.crisp.tmpfs/inner": "/scratch", "io.crisp.ulimits/inner": "core=0"},
        "linux": {},
    }
    container = {
        "metadata": {"name": "inner"},
        "image": {"image": IMAGE},
        "command": ["/bin/sh", "-c", "echo hi; sleep 1000"],
        "log_path": "inner.log",
        "linux": {},
    }
    for name, document in (("pod", sandbox), ("container", container)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    pod = crictl("runp", str(tmp_path / "pod.json")).strip()
    made = crictl("create", pod, str(tmp_path / "container.json"), str(tmp_path / "pod.json")).strip()
    said(kubelet, "start", "theirs/inner")
    wait_until(lambda: said(kubelet, "logs", "inner") == "hi\n")
    assert said(kubelet, "ps", "-q", "-f", "pod=theirs").split() == [made]
    said(kubelet, "restart", "-t", "0", "theirs")
    assert said(kubelet, "exec", "inner", "/bin/sh", "-c", "ulimit -c; grep -c /scratch /proc/mounts").split() == ["0", "1"]
    assert made not in crictl("ps", "-a", "-q", "--no-trunc")
    assert json.loads(said(kubelet, "inspect", "inner"))[0]["status"]["metadata"]["attempt"] == 1
    said(kubelet, "pod", "rm", "-f", "theirs")
    assert pod not in crictl("pods", "-q", "--no-trunc")


def test_signals_still_end_what_is_left(kubelet: Kubelet) -> None:
    """The daemon is away while a signal ends `crisp run`: it waits for the next one."""
    with subprocess.Popen(
        command(kubelet, "run", "--stop-signal", "KILL", IMAGE, "/bin/sh", "-c", "echo begun; exec sleep 1000"),
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"begun\n"
        kubelet.daemon.kill()
        running.send_signal(signal.SIGTERM)
        kubelet.daemon.start()
        assert running.wait(WAIT_SECONDS) == 128 + signal.SIGKILL
    assert (pods(kubelet), logs(kubelet)) == ([], [])


def test_who_waits_has_the_exit_code_of_what_is_stopped(kubelet: Kubelet) -> None:
    """A stop removes what --rm was said of, but not under somebody who follows it."""
    said(kubelet, "run", "-d", "--rm", "--name", "watched", IMAGE, "/bin/sleep", "1000")
    [directory] = logs(kubelet)
    with subprocess.Popen(command(kubelet, "wait", "watched"), stdout=subprocess.PIPE) as waiting:
        wait_until(lambda: followers.is_followed(str(directory)))
        waiting.send_signal(signal.SIGSTOP)  # it follows until the stop has ended
        assert said(kubelet, "stop", "-t", "0", "watched") == "watched\n"
        waiting.send_signal(signal.SIGCONT)
        assert (waiting.communicate(timeout=WAIT_SECONDS)[0], waiting.returncode) == (b"137\n", 0)
    assert not followers.is_followed(str(directory))
    crisp(kubelet, "pod", "rm", "watched")  # or the daemon has done so: nobody follows any more
    wait_until(lambda: logs(kubelet) == [])


def test_two_restarts_at_once(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them makes it anew, and the other one removes nothing."""
    said(kubelet, "run", "-d", "--name", "both", IMAGE, "/bin/sleep", "1000")
    others: list[str] = []

    def begun_by_the_other(client: Client, pod: str) -> cri.PodSandboxConfig:
        found = sandbox_config(client, pod)
        made = container_config(client, containers(kubelet)["both"])
        made.image.image, made.metadata.attempt = kubelet.image, 1
        request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=made, sandbox_config=found)
        others.append(kubelet.runtime.CreateContainer(request).container_id)
        kubelet.runtime.StartContainer(cri.StartContainerRequest(container_id=others[0]))
        return found

    monkeypatch.setattr(lifecycle, "sandbox_config", begun_by_the_other)
    done = CliRunner().invoke(lifecycle.restart, ["-t", "0", "both"], obj=kubelet.daemon.socket)
    assert (done.exit_code, "both: somebody else has made it anew" in done.output) == (1, True), done.output
    assert said(kubelet, "ps", "-q", "--filter", "name=both").split() == others
    said(kubelet, "pod", "rm", "-f", "both")


def test_a_kubelet_s_container_is_not_restarted(kubelet: Kubelet) -> None:
    """It counts the attempts, and could make none any more after one of ours."""
    config = cri.ContainerConfig(labels={"io.kubernetes.pod.uid": "x"})
    container = kubelet.pod().run("/bin/sleep", "1000", config=config)
    refused = crisp(kubelet, "restart", container.id)
    assert (refused.returncode, b"is a kubelet's" in refused.stderr) == (1, True), refused
    assert container.status().state == cri.CONTAINER_RUNNING


def test_nobody_has_to_wait_for_a_stop(kubelet: Kubelet) -> None:
    script = "trap 'echo asked' TERM; echo set; while :; do sleep 0.05; done"
    container = kubelet.pod().run("/bin/sh", "-c", script)
    wait_until(lambda: "set" in container.output())
    with subprocess.Popen(command(kubelet, "stop", "-t", "1000", container.id), stderr=subprocess.DEVNULL) as stopping:
        wait_until(lambda: "asked" in container.output())
        stopping.send_signal(signal.SIGINT)
        assert stopping.wait(WAIT_SECONDS) != 0
    assert container.status().state == cri.CONTAINER_RUNNING


def test_attach_ends_as_the_container(kubelet: Kubelet) -> None:
    script = "while ! test -e /over; do echo waiting; sleep 0.05; done; exit 9"
    container = kubelet.pod().run("/bin/sh", "-c", script)
    with subprocess.Popen(command(kubelet, "attach", container.id), stdout=subprocess.PIPE) as attached:
        assert attached.stdout is not None
        assert attached.stdout.readline() == b"waiting\n"
        container.sh("touch /over")
        attached.communicate(timeout=WAIT_SECONDS)
        assert attached.returncode == 9


@pytest.mark.parametrize("inside", [False, True])
def test_a_name_is_one_s_alone(kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    """Another one takes it after it was seen to be free; who comes second says so, and leaves nothing."""
    words = ["--name", "twin"]
    if inside:
        said(kubelet, "run", "-d", "--name", "common", IMAGE, "/bin/sleep", "1000")
        words += ["--pod", "common"]
    before, first = set(pods(kubelet)), list[str]()

    def taken_now(_node: object, _name: str, _inside: str | None) -> None:
        first.append(said(kubelet, "run", "-d", *words, IMAGE, "/bin/sleep", "1000").strip())

    monkeypatch.setattr(run, "_refuse_taken", taken_now)
    done = CliRunner().invoke(run.command, ["-d", *words, IMAGE, "/bin/sleep", "1000"], obj=kubelet.daemon.socket)
    assert (done.exit_code, "the name twin is taken" in done.output) == (125, True), done.output
    assert said(kubelet, "ps", "-q", "--filter", "name=twin").split() == first
    assert set(pods(kubelet)) == (before if inside else before | {"twin"})
    said(kubelet, "rm", "-f", "twin", *(["common"] if inside else []))
    assert logs(kubelet) == []


def test_a_name_that_several_want_at_once(kubelet: Kubelet) -> None:
    said(kubelet, "run", "-d", "--name", "common", IMAGE, "/bin/sleep", "1000")
    for words in ([], ["--pod", "common"]):
        wanted = command(kubelet, "run", "-d", "--name", "twin", *words, IMAGE, "/bin/sleep", "1000")
        running = [subprocess.Popen(wanted, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
        told = [(*process.communicate(timeout=WAIT_SECONDS), process.returncode) for process in running]
        assert sorted(code for _, _, code in told) == [0, 125, 125, 125], told
        assert all(b"the name twin is taken" in err for _, err, code in told if code), told
        [made] = [out.decode().split() for out, _, code in told if not code]
        assert said(kubelet, "ps", "-a", "-q", "--filter", "name=twin").split() == made
        said(kubelet, "rm", "-f", "twin")
    said(kubelet, "rm", "-f", "common")
    assert (pods(kubelet), logs(kubelet)) == ([], [])


@pytest.mark.parametrize("removed", [["rm", "-f"], ["pod", "rm", "-f"]])
def test_who_waits_has_the_exit_code_of_what_is_removed(kubelet: Kubelet, removed: list[str]) -> None:
    """As docker's: the container is gone, and how it has ended is known."""
    for words, code, out in (
        (["wait", "short"], 0, b"137\n"),
        (["attach", "--no-stdin", "short"], 137, b""),
        (["run", "--name", "short", IMAGE, "/bin/sleep", "1000"], 137, b""),
        (["run", "-i", "--name", "short", IMAGE, "/bin/sleep", "1000"], 137, b""),
    ):
        if words[0] != "run":
            said(kubelet, "run", "-d", "--name", "short", IMAGE, "/bin/sleep", "1000")
        with subprocess.Popen(
            command(kubelet, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE
        ) as waiting:
            wait_until(lambda: [directory for directory in logs(kubelet) if followers.is_followed(str(directory))])
            wait_until(lambda: said(kubelet, "ps", "-q", "--filter", "name=short", "--filter", "status=running"))
            said(kubelet, *removed, "short")
            told = waiting.communicate(timeout=WAIT_SECONDS)
            assert (waiting.returncode, *told) == (code, out, b""), words
        assert pods(kubelet) == []
    assert b"no such container: short" in crisp(kubelet, "wait", "short").stderr


def test_how_a_removed_container_has_ended(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sh", "-c", "exit 9")
    wait_until(lambda: container.status().state == cri.CONTAINER_EXITED)
    container.remove()
    request = admin.RemovedContainerRequest(container_id=container.id)
    assert kubelet.client.admin.RemovedContainer(request).exit_code == 9
    with pytest.raises(grpc.RpcError) as refused:
        kubelet.client.admin.RemovedContainer(admin.RemovedContainerRequest(container_id=container.id[:13]))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
