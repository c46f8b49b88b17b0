"""The `crisp` command as people's fingers expect it: what belongs to whom on its line, its ends, its exit codes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from runtime.cli import output
from runtime.cli.run_logs import RUN_LOGS
from tests.harness.daemon import ROOT
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root

IMAGE = "localhost/busybox:test"


def command(kubelet: Kubelet, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "crisp.py"), "--socket", kubelet.daemon.socket, *words]


def crisp(kubelet: Kubelet, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "timeout": 300, **options}
    return subprocess.run(command(kubelet, *words), check=False, **options)


def pods(kubelet: Kubelet) -> list[str]:
    return [item.metadata.name for item in kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items]


def logs(kubelet: Kubelet) -> list[Path]:
    """The directories of logs that `crisp run` has for this daemon's pods."""
    if not RUN_LOGS.is_dir():
        return []
    return sorted(path.parent for path in RUN_LOGS.glob("*/socket") if path.read_text() == kubelet.daemon.socket)


def test_what_follows_the_name_is_the_commands(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    for words in (["ls", "-a", "--help"], ["--", "ls", "-a", "--help"]):
        told = crisp(kubelet, "exec", container.id, *words)
        assert b"BusyBox" in told.stdout + told.stderr, told
        assert b"Usage: crisp" not in told.stdout + told.stderr
    assert crisp(kubelet, "exec", container.id, "df", "-h").returncode == 0
    assert b"Filesystem" in crisp(kubelet, "exec", container.id, "df", "-h").stdout
    for words in (["-x", container.id, "true"], ["--no-such", container.id, "true"]):
        refused = crisp(kubelet, "exec", *words)
        assert (refused.returncode, words[0].encode() in refused.stderr) == (125, True), refused
    assert b"name the command" in crisp(kubelet, "exec", container.id, "--").stderr


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_run_takes_a_command_with_options(kubelet: Kubelet, dashes: list[str]) -> None:
    told = crisp(kubelet, "run", *dashes, IMAGE, "/bin/echo", "-n", "--", "--name", "-h")
    assert (told.returncode, told.stdout) == (0, b"-- --name -h")
    refused = crisp(kubelet, "run", "--nmae", "x", IMAGE, "true")
    assert (refused.returncode, b"--nmae" in refused.stderr) == (125, True)


def test_the_socket_as_crictl_writes_it(kubelet: Kubelet) -> None:
    words = [sys.executable, str(ROOT / "crisp.py"), "--socket", f"unix://{kubelet.daemon.socket}", "ps"]
    assert subprocess.run(words, check=False, capture_output=True, timeout=300).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_pod(kubelet: Kubelet, number: signal.Signals) -> None:
    """The container has its signal and its time; nothing of it stays."""
    before = pods(kubelet)
    script = "trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    running = subprocess.Popen(command(kubelet, "run", IMAGE, "/bin/sh", "-c", script), stdout=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    assert len(logs(kubelet)) == 1
    running.send_signal(number)  # PID 1 has no other signals than those that it wants
    assert (running.communicate(timeout=300)[0], running.returncode) == (b"asked\n", 3)
    assert pods(kubelet) == before
    assert logs(kubelet) == []


@pytest.mark.parametrize("options", [[], ["-i"]])
def test_signals_are_passed_on(kubelet: Kubelet, options: list[str]) -> None:
    """With what the container says about it, and its own exit code. What was ignored from the beginning stays so."""
    script = "".join(f"trap 'echo {name}; exit {code}' {name}; " for name, code in (("INT", 5), ("TERM", 6), ("HUP", 7)))
    words = command(kubelet, "run", *options, IMAGE, "/bin/sh", "-c", f"{script} echo up; while :; do sleep 0.1; done")
    for number, told in ((signal.SIGINT, (b"INT\n", 5)), (signal.SIGTERM, (b"TERM\n", 6)), (signal.SIGHUP, (b"HUP\n", 7))):
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == b"up\n"
            running.send_signal(number)
            assert (running.stdout.read(), running.wait(300)) == told
    with subprocess.Popen(["nohup", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        running.send_signal(signal.SIGHUP)
        running.send_signal(signal.SIGTERM)
        assert (running.stdout.read(), running.wait(300)) == (b"TERM\n", 6)


def test_a_signal_while_the_pod_is_made(kubelet: Kubelet) -> None:
    """Whenever it comes: before the sandbox is there, while it is made, before the container runs."""
    before = pods(kubelet)
    for fraction in range(8):
        words = command(kubelet, "run", "--stop-signal", "KILL", IMAGE, "/bin/sleep", "1000")
        running = subprocess.Popen(words)
        if fraction:
            wait_until(lambda: logs(kubelet), pause=0.001)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(fraction * 0.02 + 0.001)
        running.send_signal(signal.SIGTERM)
        assert running.wait(300) in (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGKILL)
        assert (pods(kubelet), logs(kubelet)) == (before, [])


def test_output_that_cannot_be_written(kubelet: Kubelet) -> None:
    """A plain line, and no traceback."""
    container = kubelet.pod().run("/bin/sleep", "1000")
    for words in (["exec", container.id, "echo", "x"], ["run", IMAGE, "/bin/echo", "x"]):
        with open("/dev/full", "wb") as full:
            told = crisp(kubelet, *words, stdout=full)
        assert (told.returncode, b"No space left on device" in told.stderr) == (1, True), told
        assert b"Traceback" not in told.stderr
        closing = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command(kubelet, *words)]
        closed = subprocess.run(closing, check=False, capture_output=True, timeout=300)
        assert closed.returncode == 1, closed
        assert b"Traceback" not in closed.stderr


def test_ports_are_numbers_of_ports(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    for text in ("70000", "1:0", "-1:80", "80:70000", "x"):
        refused = crisp(kubelet, "port-forward", pod.id, "--", text)
        assert refused.returncode == 2, refused
        assert b"Traceback" not in refused.stderr


def test_images_that_are_not_there(kubelet: Kubelet) -> None:
    assert crisp(kubelet, "image", "tag", IMAGE, "localhost/other:1").returncode == 0
    told = crisp(kubelet, "image", "rm", "localhost/nosuch:1", "localhost/other:1")
    assert (told.returncode, b"no such image: localhost/nosuch:1" in told.stderr) == (1, True)
    left = [tag for image in kubelet.images.ListImages(cri.ListImagesRequest()).images for tag in image.repo_tags]
    assert "localhost/other:1" not in left


def test_a_pull_says_what_it_was_in_all(capfd: pytest.CaptureFixture[str]) -> None:
    def step(item: str, stage: str, total: int, current: int = 0) -> admin.ImageProgress:
        return admin.ImageProgress(item=item, stage=stage, current=current, total=total)

    steps = [step("a", "downloading", 2_000_000), step("b", "exists", 5), step("a", "unpacking", 2_000_000, 7)]
    assert output.show([*steps, step("a", "done", 2_000_000), admin.ImageProgress(done=True, image_ids=["x"])]) == ["x"]
    lines = capfd.readouterr().err.splitlines()
    assert lines[:4] == [
        "a: downloading 2000000 bytes",
        "b: exists 5 bytes",
        "a: unpacking 2000000 bytes",
        "a: done 2000000 bytes",
    ]
    assert re.fullmatch(r"2.0 MB in \d+\.\d s, 1 of 2 layers were there", lines[4])


def test_a_long_output_is_whole_and_its_log_is_not_kept(kubelet: Kubelet) -> None:
    words = command(kubelet, "run", IMAGE, "/bin/sh", "-c", "seq 1 600000; sleep 1000")
    running = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert running.stdout is not None
    for number in range(1, 600_001):
        assert int(running.stdout.readline()) == number
    [directory] = logs(kubelet)
    wait_until(lambda: sum(path.stat().st_size for path in directory.glob("*.log")) == 0)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=300)
    assert running.returncode == 128 + signal.SIGKILL
