"""The `crisp` command against containers that mean harm, options that mean nothing, and ends that come at a bad time."""

from __future__ import annotations

import contextlib
import gzip
import os
import pty
import signal
import stat
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest

from proto import api_pb2 as cri
from runtime.cli.run_logs import RUN_LOGS
from tests.api.test_command import IMAGE, command, crisp, pods
from tests.api.test_docker_names import said, until
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import WAIT_SECONDS, wait_until

pytestmark = pytest.mark.root


def with_logs_of_its_own(kubelet: Kubelet, *words: str) -> tuple[int, list[str]]:
    """The exit code of a command that sees no other's logs, and the directories that it has left for some."""
    script = 'mount -t tmpfs none "$0" && { "$@"; code=$?; ls "$0"; exit $code; }'
    RUN_LOGS.mkdir(exist_ok=True)
    told = ["unshare", "--mount", "/bin/sh", "-c", script, str(RUN_LOGS), *command(kubelet, *words)]
    done = subprocess.run(told, check=False, stdout=subprocess.PIPE, timeout=300)
    return done.returncode, done.stdout.decode().split()


def test_names_that_a_container_has_given_reach_no_terminal_as_they_are(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    script = r"touch $(printf '/tmp/a\033[2Jb') $(printf '/tmp/c\377d')"
    assert crisp(kubelet, "exec", container.id, "/bin/sh", "-c", script).returncode == 0
    plain = crisp(kubelet, "diff", container.id)
    assert (plain.returncode, b"A /tmp/a\x1b[2Jb\n" in plain.stdout, b"A /tmp/c\xffd\n" in plain.stdout) == (
        0,
        True,
        True,
    ), plain
    ours, theirs = pty.openpty()
    assert crisp(kubelet, "diff", container.id, stdout=theirs).returncode == 0
    shown = until(ours, b"/tmp/c")
    os.close(theirs)
    os.close(ours)
    assert b"A /tmp/a?[2Jb" in shown


def test_what_a_container_has_made_gains_nothing_by_being_copied(kubelet: Kubelet, tmp_path: Path) -> None:
    """No program with the rights of whom it belongs to here, and no device."""
    container = kubelet.pod().run("/bin/sleep", "1000")
    script = (
        "mkdir /made; cp /bin/busybox /made/id; chown 1000 /made/id; chmod 6755 /made/id;"
        " mknod /made/null c 1 3; echo x >/made/zz"
    )
    assert crisp(kubelet, "exec", container.id, "/bin/sh", "-c", script).returncode == 0
    done = crisp(kubelet, "cp", f"{container.id}:/made", str(tmp_path))
    assert stat.S_IMODE((tmp_path / "made/id").stat().st_mode) == 0o755
    assert not (tmp_path / "made/null").exists()
    assert (done.returncode, b"made/null" in done.stderr) == (1, True), done
    assert (tmp_path / "made/zz").read_text() == "x\n"
    said(kubelet, "cp", "-a", f"{container.id}:/made", str(tmp_path))
    assert stat.S_IMODE((tmp_path / "made/id").stat().st_mode) == 0o6755
    assert stat.S_ISCHR((tmp_path / "made/null").stat().st_mode)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_copy_that_is_ended_ends(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    with subprocess.Popen(command(kubelet, "cp", "-", f"{container.id}:/tmp"), stdin=subprocess.PIPE) as copying:
        children = Path(f"/proc/{copying.pid}/task/{copying.pid}/children")
        found: list[int] = []
        wait_until(lambda: found.extend(map(int, children.read_text().split())) or found)
        wait_until(lambda: not os.path.samefile(f"/proc/{found[0]}/root", "/"))
        copying.terminate()
        copying.wait(WAIT_SECONDS)
        wait_until(lambda: not any(map(runs, found)))


def test_copies_that_cannot_be_written(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    words = command(kubelet, "cp", f"{container.id}:/etc", "-")
    closed = subprocess.run(["/bin/sh", "-c", 'exec "$@" >&-', "sh", *words], check=False, capture_output=True, timeout=300)
    assert (closed.returncode, b"crisp: " in closed.stderr, b"Traceback" in closed.stderr) == (1, True, False), closed


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["ps", "--help"],
        ["--version"],
        ["ps"],
        ["pod", "ls"],
        ["images"],
        ["version"],
        ["info"],
        ["inspect", IMAGE],
        ["completion", "bash"],
    ],
)
def test_lists_that_cannot_be_written(kubelet: Kubelet, words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        told = crisp(kubelet, *words, stdout=full)
    assert (told.returncode, b"No space left" in told.stderr, b"Traceback" in told.stderr) == (1, True, False), told


TOO_MUCH: list[list[str | bytes]] = [
    ["run", "--cpu-shares", str(1 << 70), IMAGE],
    ["run", "--oom-score-adj", str(1 << 40), IMAGE],
    ["run", "--group-add", str(1 << 70), IMAGE],
    ["run", "-u", str(1 << 70), IMAGE],
    ["run", "-u", f"0:{1 << 70}", IMAGE],
    ["run", "--memory", "99999999999T", IMAGE],
    ["run", "--cpus", "nan", IMAGE],
    ["run", IMAGE, b"/bin/echo", b"\xff"],
    ["run", "--name", b"\xff", IMAGE],
    ["exec", b"\xff", "true"],
    ["stop", "-t", str(1 << 70), "x"],
    ["logs", "--since", "99999999999999999h", "x"],
    ["logs", "--since", "9" * 30, "x"],
    ["logs", "--tail", "9" * 5000, "x"],
    ["logs", "--tail", "9" * 30, "x"],
    ["kill", "-s", "9" * 5000, "x"],
    ["port-forward", "x", "9" * 5000],
    ["ps", "--filter", b"name=\xff"],
]


@pytest.mark.parametrize("words", TOO_MUCH)
def test_options_that_mean_nothing(kubelet: Kubelet, words: list[Any]) -> None:
    refused = crisp(kubelet, *words)
    assert (refused.returncode in (0, 1, 2, 125), b"Traceback" in refused.stderr) == (True, False), refused


def test_what_cannot_be_made_leaves_no_logs(kubelet: Kubelet) -> None:
    before = pods(kubelet)
    for words in (["--handler", "nosuch"], ["--pod", "nosuch"], ["--sysctl", "no.such=1"]):
        code, left = with_logs_of_its_own(kubelet, "run", "-d", *words, IMAGE, "/bin/sleep", "1000")
        assert (code, left) == (125, []), words
    assert pods(kubelet) == before


def test_what_runs_in_a_pod_that_is_there_leaves_no_logs(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    words = ["run", "-d", "--pod", pod.id, "--name", "beside", IMAGE, "/bin/sleep", "1000"]
    code, said = with_logs_of_its_own(kubelet, *words)
    assert code == 0
    assert len(said) == 1, "its id, and no directory"


def test_a_pod_without_logs(kubelet: Kubelet) -> None:
    metadata = cri.PodSandboxMetadata(name="mute", uid="mute", namespace="default")
    kubelet.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=cri.PodSandboxConfig(metadata=metadata)))
    assert said(kubelet, "run", "--pod", "mute", IMAGE, "/bin/echo", "heard") == "heard\n"


def test_exit_codes_of_what_is_run_in_a_container(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    assert crisp(kubelet, "exec", container.id, "/nosuch").returncode == 127
    assert crisp(kubelet, "exec", container.id, "/etc/passwd").returncode == 126


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_half_an_archive_does_not_stay(kubelet: Kubelet, number: signal.Signals) -> None:
    with subprocess.Popen(command(kubelet, "load"), stdin=subprocess.PIPE) as loading:
        assert loading.stdin is not None
        loading.stdin.write(bytes(1 << 20))
        found: list[str] = []

        def spooled() -> bool:
            links = Path(f"/proc/{loading.pid}/fd").iterdir()
            found[:] = [link for link in map(os.readlink, links) if link.startswith("/var/tmp/crisp-import-")]
            return bool(found)

        wait_until(spooled)
        loading.send_signal(number)
        assert loading.wait(WAIT_SECONDS) == 128 + number
        assert not Path(found[0]).exists()


def test_a_signal_while_a_container_is_made_in_a_pod_that_is_there(kubelet: Kubelet) -> None:
    """Whenever it comes."""
    pod = kubelet.pod()
    for hundredths in range(20, 70, 7):
        words = command(kubelet, "run", "--stop-signal", "KILL", "--pod", pod.id, IMAGE, "/bin/sleep", "1000")
        with subprocess.Popen(words) as running:
            with pytest.raises(subprocess.TimeoutExpired):
                running.wait(hundredths / 100)
            running.send_signal(signal.SIGTERM)
            assert running.wait(WAIT_SECONDS) in (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGKILL)
        assert list(kubelet.runtime.ListContainers(cri.ListContainersRequest()).containers) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_terminal_after_a_signal(kubelet: Kubelet, number: signal.Signals) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    words = command(kubelet, "exec", "-it", container.id, "/bin/sh", "-c", "echo begun; sleep 1000")
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as running:
        until(ours, b"begun")
        assert termios.tcgetattr(theirs) != before
        running.send_signal(number)
        assert running.wait(WAIT_SECONDS) == 128 + number
    assert termios.tcgetattr(theirs) == before
    os.close(theirs)
    os.close(ours)


def test_a_log_that_a_kubelet_packs(kubelet: Kubelet) -> None:
    """Half of a packed log is none, and the log is not shown twice while both are there."""
    container = kubelet.pod().run("/bin/sh", "-c", "echo first; sleep 1000")
    path = Path(kubelet.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container.id)).status.log_path)
    wait_until(path.read_bytes)
    old = path.with_name(path.name + ".20260101-000000")
    text = path.read_bytes()
    old.write_bytes(text)
    old.with_name(old.name + ".tmp").write_bytes(text)
    Path(f"{old}.gz").write_bytes(gzip.compress(text))
    assert said(kubelet, "logs", container.id) == "first\nfirst\n"


def tags(kubelet: Kubelet) -> list[str]:
    return [tag for image in kubelet.images.ListImages(cri.ListImagesRequest()).images for tag in image.repo_tags]


def test_a_signal_while_a_directory_is_taken_in(kubelet: Kubelet, tmp_path: Path) -> None:
    """Whenever it comes, the image that was made of it goes."""
    for number in range(3000):
        (tmp_path / str(number)).write_bytes(b"x" * 20000)
    before = tags(kubelet), pods(kubelet)
    for tenths in range(3, 12, 2):
        with subprocess.Popen(
            command(kubelet, "run", "--rootfs", str(tmp_path), "/x"), stderr=subprocess.DEVNULL
        ) as running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(tenths / 10)
            running.send_signal(signal.SIGTERM)
            assert running.wait(WAIT_SECONDS) in (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGKILL, 127)
        wait_until(lambda: (tags(kubelet), pods(kubelet)) == before, 20)


def test_a_terminal_that_gets_its_input_from_elsewhere(kubelet: Kubelet) -> None:
    """It would wait for ever: what a terminal reads has no end. docker says so too."""
    container = kubelet.pod().run("/bin/sleep", "1000")
    before = pods(kubelet)
    for words in (["run", "-it", IMAGE, "/bin/sh"], ["exec", "-it", container.id, "/bin/sh"]):
        refused = crisp(kubelet, *words)
        assert (refused.returncode, b"not a terminal" in refused.stderr, refused.stdout) == (1, True, b""), refused
    assert pods(kubelet) == before
    assert said(kubelet, "exec", "-t", container.id, "/bin/echo", "x") == "x\r\n"
