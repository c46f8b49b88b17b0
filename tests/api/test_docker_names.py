"""What docker's users type: names of containers, lists and their forms, logs, files, signals, terminals, exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from proto import api_pb2 as cri
from runtime.cli import run_logs
from tests.api.test_command import IMAGE, command, crisp, pods
from tests.harness.daemon import ROOT
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import WAIT_SECONDS, wait_until

pytestmark = pytest.mark.root

SERVER = """
echo first; echo second >&2; printf third
mkdir -p /srv/www; echo index > /srv/www/index; ln -s /etc/passwd /srv/www/link; rm -f /etc/group
trap 'echo asked; exit 7' USR1
touch /ready; while :; do sleep 0.1; done
"""


def said(kubelet: Kubelet, *words: str, code: int = 0, **options: Any) -> str:
    """What a command prints that ends with this code."""
    done = crisp(kubelet, *words, **options)
    assert done.returncode == code, done
    return str(done.stdout.decode())


@pytest.fixture
def web(kubelet: Kubelet) -> Iterator[str]:
    """A container that `crisp run` has left running."""
    name = "web"
    words = ["run", "-d", "--name", name, "-p", "127.0.0.1:18098:80/udp", "-l", "tier=front", "-e", "GREETING=hello"]
    key = said(kubelet, *words, "--memory", "64M", "--hostname", "host1", IMAGE, "/bin/sh", "-c", SERVER).strip()
    wait_until(lambda: crisp(kubelet, "exec", name, "test", "-e", "/ready").returncode == 0)
    yield key
    crisp(kubelet, "rm", "-f", name)
    assert "web" not in pods(kubelet)


def test_lists(kubelet: Kubelet, web: str) -> None:
    assert said(kubelet, "ps", "-q", "--filter", "name=web").split() == [web]
    assert said(kubelet, "ps", "--filter", "label=tier=front", "--filter", "name=other") == said(
        kubelet, "ps", "--filter", "id=none"
    )
    [row] = map(json.loads, said(kubelet, "ps", "--format", "json", "-f", "state=running", "-f", "pod=web").splitlines())
    assert (row["Names"], row["State"], row["Pod"], row["Labels"]) == ("web", "running", "default/web", {"tier": "front"})
    assert row["Ports"] == "127.0.0.1:18098->80/udp"
    assert said(kubelet, "ps", "--format", "{{.Names}}\\t{{json .Labels}}", "-f", "id=" + web[:8]) == (
        'web\t{"tier": "front"}\n'
    )
    refused = crisp(kubelet, "ps", "--format", "{{.Nmae}}", "-f", "name=web")
    assert (refused.returncode, b"known are Attempt" in refused.stderr) == (2, True)
    refused = crisp(kubelet, "ps", "--filter", "nmae=web")
    assert (refused.returncode, b"exited, id, image" in refused.stderr) == (2, True)
    assert said(kubelet, "ps", "-aq", "-f", "name=^we", "-f", f"ancestor={IMAGE}").split() == [web]
    assert said(
        kubelet, "ps", "-aq", "-f", "name=we", "-f", f"ancestor={kubelet.image.removeprefix('sha256:')[:12]}"
    ).split() == [web]
    assert said(kubelet, "ps", "-aq", "-f", "name=^we$") == said(kubelet, "ps", "-aq", "-f", "ancestor=other") == ""
    assert crisp(kubelet, "ps", "-f", "name=[").returncode == 2
    said(kubelet, "run", "--keep", "--name", "newest", IMAGE, "/bin/true")
    assert said(kubelet, "ps", "-l", "--format", "{{.Names}}") == "newest\n"
    assert said(kubelet, "ps", "-n", "2", "--format", "{{.Names}}") == "newest\nweb\n"
    said(kubelet, "rm", "newest")
    assert "web" in said(kubelet, "pod", "ls", "--format", "{{.Name}} {{.State}}")
    assert said(kubelet, "images", "-q", "-f", "reference=localhost/busy*").split() == [kubelet.image]
    assert IMAGE in said(kubelet, "image", "ls")


def test_what_it_is_and_does(kubelet: Kubelet, web: str) -> None:
    assert said(kubelet, "inspect", "-f", "{{.status.state}} {{.status.id}}", "web") == f"CONTAINER_RUNNING {web}\n"
    [shown] = json.loads(said(kubelet, "inspect", web[:10]))
    assert (shown["info"]["pid"] > 0, shown["info"]["attached"]) == (True, 0)
    [pod] = json.loads(said(kubelet, "pod", "inspect", "default/web"))
    assert pod["info"]["config"]["port_mappings"][0]["host_port"] == 18098
    assert pod["info"]["config"]["hostname"] == "host1"
    [image] = json.loads(said(kubelet, "inspect", "--type", "image", IMAGE))
    assert image["image"]["id"] == kubelet.image
    assert b"no such container or pod or image: nobody" in crisp(kubelet, "inspect", "nobody").stderr
    assert "80/udp -> 127.0.0.1:18098" in said(kubelet, "port", "web")
    rows = said(kubelet, "top", "web").splitlines()
    assert rows[0].split() == ["UID", "PID", "PPID", "STATE", "TIME", "COMMAND"]
    assert any(str(shown["info"]["pid"]) in row.split() for row in rows[1:])
    changed = said(kubelet, "diff", "web").splitlines()
    assert {"A /srv/www", "A /srv/www/index", "D /etc/group"} <= set(changed)
    assert not [line for line in changed if "resolv.conf" in line]
    assert said(kubelet, "exec", "web", "/bin/sh", "-c", "echo $GREETING") == "hello\n"
    assert "GREETING" not in os.environ


def test_what_is_made_for_a_mount_is_no_change(kubelet: Kubelet, tmp_path: Path) -> None:
    """The same places are left out of an image; what has only the name of another tool's file is the container's own."""
    script = "mkdir -p /run && echo x > /run/.containerenv"
    words = ["run", "--keep", "--name", "changed", "-v", f"{tmp_path}:/srv//a/../data/", IMAGE, "/bin/sh", "-c", script]
    assert crisp(kubelet, *words).returncode == 0
    assert said(kubelet, "diff", "changed").splitlines() == ["C /etc", "A /run", "A /run/.containerenv", "A /srv"]
    said(kubelet, "rm", "changed")


def test_a_command_that_is_somebody_else_and_somewhere_else(kubelet: Kubelet, web: str) -> None:
    words = ["exec", "-u", "www", "-w", "/srv/www", "-e", "GREETING=hi", "-e", "MORE=a=b", "web", "/bin/sh", "-c"]
    told = said(kubelet, *words, 'id -u; id -G; pwd; echo "$GREETING $MORE"; touch /srv/www/mine || echo no').splitlines()
    assert (told[0], told[2:]) == ("33", ["/srv/www", "hi a=b", "no"])
    assert said(kubelet, "exec", "-u", "12:34", "web", "/bin/sh", "-c", "id -u; id -g").split() == ["12", "34"]
    for options in (["-u", "who"], ["-w", "relative"], ["-e", "=x"], ["-e", "x"]):
        refused = crisp(kubelet, "exec", *options, "web", "true")
        assert (refused.returncode, b"Traceback" in refused.stderr, bool(refused.stderr)) == (1, False, True), refused
    assert said(kubelet, "exec", "web", "/bin/sh", "-c", "echo $GREETING") == "hello\n"


def test_logs(kubelet: Kubelet, web: str) -> None:
    done = crisp(kubelet, "logs", "web")
    assert (done.stdout, done.stderr) == (b"first\n", b"second\n")  # the rest is no line yet
    assert crisp(kubelet, "logs", "--tail", "0", "web").stdout == b""
    tail = crisp(kubelet, "logs", "--tail", "1", "web")
    assert (tail.stdout, tail.stderr) in ((b"first\n", b""), (b"", b"second\n"))
    assert crisp(kubelet, "logs", "--since", "2100-01-01T00:00:00Z", "web").stdout == b""
    assert crisp(kubelet, "logs", "--since", "1h30m", "web").stdout == b"first\n"
    assert crisp(kubelet, "logs", "--since", "0", "web").stdout == b"first\n"
    stamped = crisp(kubelet, "logs", "-t", "web").stdout.splitlines()[0].split()
    assert (len(stamped[0]), stamped[1]) == (30, b"first")
    assert crisp(kubelet, "logs", "--since", "yesterday", "web").returncode == 2
    # A kubelet rotates: the file gets another name, then the container is told.
    path = kubelet.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=web)).status.log_path
    with subprocess.Popen(command(kubelet, "logs", "-f", "web"), stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == b"first\n"
        os.rename(path, path + ".20260101-000000")
        kubelet.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=web))
        said(kubelet, "kill", "-s", "USR1", "web")
        assert following.stdout.read() == b"thirdasked\n"
        assert following.wait(WAIT_SECONDS) == 0
    assert crisp(kubelet, "logs", "web").stdout == b"first\nthirdasked\n"
    assert said(kubelet, "wait", "web") == "7\n"


def test_files(kubelet: Kubelet, web: str, tmp_path: Path) -> None:
    said(kubelet, "cp", "web:/srv", str(tmp_path))
    assert (tmp_path / "srv/www/index").read_text() == "index\n"
    assert os.readlink(tmp_path / "srv/www/link") == "/etc/passwd"
    said(kubelet, "cp", "web:/srv/www/index", str(tmp_path / "renamed"))
    assert (tmp_path / "renamed").read_text() == "index\n"
    said(kubelet, "cp", "web:/srv/www/.", str(tmp_path))
    assert (tmp_path / "index").exists()
    said(kubelet, "cp", str(tmp_path / "srv"), "web:/opt")
    assert said(kubelet, "exec", "web", "cat", "/opt/www/index") == "index\n"
    (tmp_path / "passwd").write_text("mine\n")
    said(kubelet, "exec", "web", "/bin/sh", "-c", "mkdir -p /in && ln -s /in /out")
    said(kubelet, "cp", str(tmp_path / "passwd"), "web:/out/")
    assert said(kubelet, "exec", "web", "cat", "/in/passwd") == "mine\n"
    with tarfile.open(fileobj=BytesIO(crisp(kubelet, "cp", "web:/srv", "-").stdout)) as tar:
        assert {"srv", "srv/www", "srv/www/index"} <= set(tar.getnames())
    for source, target in (
        ("web:/nothing", str(tmp_path)),
        ("web:/srv", str(tmp_path / "a/b")),
        (str(tmp_path), "web:/no/no"),
    ):
        refused = crisp(kubelet, "cp", source, target)
        assert (refused.returncode, b"Traceback" in refused.stderr, bool(refused.stderr)) == (1, False, True), refused
    assert crisp(kubelet, "cp", "web:/a", "web:/b").returncode == 2


def test_a_container_cannot_lead_a_copy_astray(kubelet: Kubelet, web: str, tmp_path: Path) -> None:
    """Its links are followed within its root, and never here."""
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "here").mkdir()
    said(kubelet, "exec", "web", "ln", "-s", str(tmp_path / "secret"), "/leak")
    said(kubelet, "exec", "web", "ln", "-s", str(tmp_path), "/away")
    said(kubelet, "cp", "web:/leak", str(tmp_path / "here"))
    assert (tmp_path / "here/leak").is_symlink()
    assert crisp(kubelet, "cp", "web:/away/secret", str(tmp_path / "here")).returncode == 1
    assert crisp(kubelet, "cp", str(tmp_path / "secret"), "web:/away/new").returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "secret"]


def test_ends(kubelet: Kubelet, web: str) -> None:
    assert b"stop it first" in crisp(kubelet, "rm", "web").stderr
    done = crisp(kubelet, "stop", "-t", "0", "web", "nobody")
    assert (done.returncode, done.stdout, b"no such container: nobody" in done.stderr) == (1, b"web\n", True)
    assert said(kubelet, "ps", "-a", "--format", "{{.Status}}", "-f", "exited=137", "-f", "name=web").startswith("Exited")
    assert b"runs once" in crisp(kubelet, "start", "web").stderr
    uid = json.loads(said(kubelet, "pod", "ls", "--format", "json", "-f", "name=web"))["UID"]
    assert run_logs.directory(uid).is_dir()
    said(kubelet, "run", "--pod", "web", "--name", "beside", "--keep", IMAGE, "/bin/hostname")
    assert said(kubelet, "logs", "beside") == "host1\n"
    assert said(kubelet, "rm", "web", "beside") == "web\nbeside\n"
    assert "web" not in pods(kubelet)
    assert not run_logs.directory(uid).exists()


def test_names_that_could_be_several(kubelet: Kubelet) -> None:
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="twin"))
    one, other = (kubelet.pod().run("/bin/sleep", "1000", config=config) for _ in range(2))
    refused = crisp(kubelet, "exec", "twin", "true")
    assert refused.returncode == 1
    assert b"twin could be any of 2 containers" in refused.stderr
    assert said(kubelet, "exec", f"{other.pod.config.metadata.name}/twin", "hostname").strip() == other.pod.config.hostname
    assert said(kubelet, "exec", one.pod.config.metadata.name, "hostname").strip() == one.pod.config.hostname


EXITS = [
    (["/bin/sh", "-c", "exit 3"], 3),
    (["/bin/no-such-program"], 127),
    (["/etc/passwd"], 126),
]


@pytest.mark.parametrize(("words", "code"), EXITS)
def test_exit_codes(kubelet: Kubelet, words: list[str], code: int) -> None:
    before = pods(kubelet)
    done = crisp(kubelet, "run", IMAGE, *words)
    assert (done.returncode, pods(kubelet)) == (code, before), done


def test_failures_of_its_own(kubelet: Kubelet) -> None:
    assert crisp(kubelet, "run", "--pull", "never", "localhost/nosuch:1").returncode == 125
    for words in (
        ["--publish", "x"],
        ["--memory", "much"],
        ["--volume", "named:/x"],
        ["--gpus", "2"],
        ["--restart", "always"],
        ["--security-opt", "what"],
        ["--user", "0:wheel"],
    ):
        refused = crisp(kubelet, "run", *words, IMAGE, "true")
        assert (refused.returncode, words[0].encode() in refused.stderr) == (125, True), refused


def test_what_run_is_told(kubelet: Kubelet, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("from the node\n")
    (tmp_path / "variables").write_text("# none\nONE=1\nTWO=two words\n")
    options = ["--env-file", str(tmp_path / "variables"), "-e", "THREE=3", "-w", "/tmp", "-u", "12:34", "--read-only"]
    options += ["-v", f"{tmp_path}:/data:ro", "--cap-drop", "ALL", "--group-add", "56", "--dns", "10.9.8.7"]
    script = (
        'echo "$ONE $TWO $THREE"; pwd; id -u; id -g; cat /data/file; touch /data/x /x 2>/dev/null || echo no;'
        " grep CapEff /proc/self/status; cat /etc/resolv.conf; cat /proc/self/oom_score_adj"
    )
    told = said(kubelet, "run", *options, "--oom-score-adj", "321", IMAGE, "/bin/sh", "-c", script).splitlines()
    assert told[:6] == ["1 two words 3", "/tmp", "12", "34", "from the node", "no"]
    assert told[6].split() == ["CapEff:", "0000000000000000"]
    assert told[7:] == ["nameserver 10.9.8.7", "321"]
    assert said(kubelet, "run", "--entrypoint", "/bin/echo", IMAGE, "a", "b") == "a b\n"
    assert said(kubelet, "run", "-e=A=b", "--entrypoint", "/bin/echo", IMAGE, "--", "-e=A=b", "--") == "-- -e=A=b --\n"
    key = said(kubelet, "run", "-d", "--stop-signal", "quit", IMAGE, "/bin/sleep", "1000").strip()
    status = kubelet.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=key)).status
    assert status.stop_signal == cri.SIGNAL_SIGQUIT
    said(kubelet, "rm", "-f", key)
    assert crisp(kubelet, "run", "--stop-signal", "SIGNONE", IMAGE, "true").returncode == 125


def test_input(kubelet: Kubelet) -> None:
    done = crisp(kubelet, "run", "-i", IMAGE, "/bin/sh", "-c", "cat; exit 5", stdin=None, input=b"line\n" * 1000)
    assert (done.returncode, done.stdout) == (5, b"line\n" * 1000)


def test_a_terminal(kubelet: Kubelet) -> None:
    """Nothing of its first output is lost, it has our size, and our terminal is as it was."""
    ours, theirs = pty.openpty()
    before = pods(kubelet)
    words = command(kubelet, "run", "-it", IMAGE, "/bin/sh", "-c", "echo begun; tty; read x; echo got $x; exit 9")
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as running:
        os.close(theirs)
        seen = until(ours, b"/dev/pts/0")
        assert b"begun\r\n" in seen
        os.write(ours, b"word\n")
        assert b"got word\r\n" in until(ours, b"got word\r\n")
        assert running.wait(WAIT_SECONDS) == 9
    os.close(ours)
    assert pods(kubelet) == before


def until(terminal: int, wanted: bytes) -> bytes:
    """What comes out of a terminal, up to something."""
    seen, deadline = b"", time.monotonic() + WAIT_SECONDS
    while wanted not in seen:
        assert select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0], seen
        seen += os.read(terminal, 4096)
    return seen


def test_signals_that_are_none(kubelet: Kubelet, web: str) -> None:
    assert crisp(kubelet, "kill", "-s", "NONE", "web").returncode == 2
    said(kubelet, "kill", "-s", str(int(signal.SIGKILL)), "web")
    assert said(kubelet, "wait", "web") == "137\n"


def test_archives(kubelet: Kubelet, web: str, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    said(kubelet, "commit", "web", "localhost/saved:1")
    said(kubelet, "save", "-o", str(archive), "localhost/saved:1")
    said(kubelet, "rmi", "localhost/saved:1")
    with archive.open("rb") as stdin:
        [loaded] = said(kubelet, "load", stdin=stdin).split()
    assert said(kubelet, "images", "-q", "-f", "reference=localhost/saved").split() == [loaded]
    said(kubelet, "rmi", "localhost/saved:1")


def test_about(kubelet: Kubelet) -> None:
    assert "RuntimeReady" in said(kubelet, "info")
    assert "Server: crisp" in said(kubelet, "version")


@pytest.mark.parametrize("plain", [False, True])
def test_progress_is_drawn_without_colours_where_nobody_wants_them(plain: bool) -> None:
    """Bars on a terminal; with NO_COLOR in black and white."""
    script = (
        "from proto import admin_pb2 as a; from runtime.cli import output;"
        " output.show([a.ImageProgress(item='layer', stage='downloading', current=5, total=9), a.ImageProgress(done=True)])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", **({"NO_COLOR": "1"} if plain else {})}
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", script], stderr=theirs, cwd=ROOT, env=environment) as drawing:
        os.close(theirs)
        seen = until(ours, b" s\r\n")
        assert drawing.wait(WAIT_SECONDS) == 0
    os.close(ours)
    assert b"downloading" in seen
    assert bool(re.search(rb"\x1b\[[\d;]*3[\d;]*m", seen)) is not plain, seen


def test_what_is_not_there_and_need_not_be(kubelet: Kubelet, web: str) -> None:
    for words in (["rm", "-fv", "nobody", "web"], ["rmi", "-f", "localhost/nosuch:1"]):
        done = crisp(kubelet, *words)
        assert (done.returncode, b"no such" in done.stderr) == (0, True), done
    assert web not in said(kubelet, "ps", "-aq")
    assert crisp(kubelet, "rm", "nobody").returncode == 1


def test_archives_of_images_and_pipes(kubelet: Kubelet, tmp_path: Path) -> None:
    """docker's way: the standard output is where an archive goes, a file is replaced, and the daemon's is not ours."""
    name = "localhost/saved:1"
    said(kubelet, "run", "--keep", "--name", "made", IMAGE, "/bin/touch", "/x")
    said(kubelet, "commit", "made", name)
    said(kubelet, "rm", "made")
    assert said(kubelet, "images", "localhost/saved", "-q") == said(kubelet, "image", "inspect", "-f", "{{.image.id}}", name)
    assert said(kubelet, "images", "localhost/save", "-q") == ""
    piped = crisp(kubelet, "save", name).stdout
    (tmp_path / "file").write_text("old")
    for place in (str(tmp_path / "file"), "/dev/stdout"):
        done = crisp(kubelet, "save", "-o", place, name)
        assert (done.returncode, done.stdout[:500]) == (0, piped[:500] if place == "/dev/stdout" else b""), done.stderr
    for archive in (piped, (tmp_path / "file").read_bytes()):
        with tarfile.open(fileobj=BytesIO(archive)) as opened:
            assert "manifest.json" in opened.getnames()
    said(kubelet, "rmi", name)
    assert crisp(kubelet, "load", "-q", stdin=None, input=piped).returncode == 0
    for words in (["save", name], ["image", "export", "-", name]):
        with open("/dev/full", "wb") as full:
            told = crisp(kubelet, *words, stdout=full)
        assert (told.returncode, b"No space left" in told.stderr) == (1, True), told
        closing = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command(kubelet, *words)]
        closed = subprocess.run(closing, check=False, capture_output=True, timeout=300)
        assert (closed.returncode, b"Traceback" in closed.stderr) == (1, False), closed
    ours, theirs = pty.openpty()
    assert crisp(kubelet, "save", name, stdout=theirs).returncode == 2
    os.close(theirs)
    os.close(ours)
    said(kubelet, "rmi", name)


def test_a_name_less(kubelet: Kubelet) -> None:
    """docker's rmi takes the name that it is told, and an image with its last one."""
    said(kubelet, "run", "--keep", "--name", "made", IMAGE, "/bin/touch", "/y")
    key = said(kubelet, "commit", "made", "localhost/names:1").strip()
    said(kubelet, "rm", "made")
    said(kubelet, "tag", "localhost/names:1", "other")
    said(kubelet, "tag", "localhost/names:1", "localhost/third:3")
    refused = crisp(kubelet, "rmi", key)
    assert (refused.returncode, b"has 3 names" in refused.stderr) == (1, True), refused
    said(kubelet, "rmi", "other")
    listed = ["localhost/names:1", "localhost/third:3"]
    assert sorted(json.loads(said(kubelet, "images", "localhost/names", "--format", "json"))["Names"]) == listed
    said(kubelet, "rmi", "localhost/third:3", "localhost/names:1")
    assert crisp(kubelet, "rmi", key).returncode == 1
    assert said(kubelet, "images", "-q", "--filter", f"id={key}") == ""


@pytest.mark.parametrize("words", [["load"], ["image", "import", "-"], ["build", "-"], ["build", "-f", "-", "."]])
def test_the_standard_input_is_closed(kubelet: Kubelet, words: list[str]) -> None:
    closing = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *command(kubelet, *words)]
    done = subprocess.run(closing, check=False, capture_output=True, timeout=300)
    assert (done.returncode, b"Traceback" in done.stderr, b"crisp: " in done.stderr) == (1, False, True), done


def test_a_build_with_everything_closed(kubelet: Kubelet, tmp_path: Path) -> None:
    """Its own directory is all that it needs."""
    (tmp_path / "Containerfile").write_text(f"FROM {IMAGE}\nCOPY Containerfile /\n")
    words = command(kubelet, "build", "--iidfile", str(tmp_path / "id"), str(tmp_path))
    closing = ["/bin/sh", "-c", 'exec "$@" <&- >&-', "sh", *words]
    done = subprocess.run(closing, check=False, capture_output=True, timeout=300)
    assert (b"Traceback" in done.stderr, (tmp_path / "id").read_text()[:7]) == (False, "sha256:"), done
    said(kubelet, "system", "prune", "-f")


def test_files_by_relative_paths(kubelet: Kubelet, web: str, tmp_path: Path) -> None:
    """They begin at the container's root, as docker's; and one failure is told once."""
    (tmp_path / "file").write_text("text\n")
    for place in ("relative", "tmp/../beside", "srv/"):
        said(kubelet, "cp", str(tmp_path / "file"), f"web:{place}")
    assert said(kubelet, "exec", "web", "cat", "/relative", "/beside", "/srv/file") == "text\n" * 3
    said(kubelet, "cp", "web:etc/passwd", str(tmp_path))
    assert "root" in (tmp_path / "passwd").read_text()
    for words in (
        ["web:/no/such", str(tmp_path)],
        [str(tmp_path / "none"), "web:/"],
        [str(tmp_path / "file"), "web:/no/such/"],
    ):
        refused = crisp(kubelet, "cp", *words)
        assert (refused.returncode, refused.stderr.count(b"\n"), b"no such" in refused.stderr.lower()) == (1, 1, True), (
            refused
        )
