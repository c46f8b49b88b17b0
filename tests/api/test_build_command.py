"""`crisp build`: images from Containerfiles, made on a real daemon, and what stays of a build that is killed: nothing."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from tests.api.building import NAME, build, config, context, in_image
from tests.api.test_command import command, crisp
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until
from tests.images.registry_server import Registry

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("no_images_stay")]


WHOLE = """
ARG TAG=test
FROM localhost/busybox:${TAG} AS one
ARG WHO=world
ENV GREETING=hello
RUN echo "$GREETING $WHO" > /greeting
WORKDIR /srv/www
COPY --chown=app:app --chmod=640 file ./

FROM BASE
USER app:more
RUN id -u > /tmp/user; id -gn >> /tmp/user; echo 'to be seen'
USER root
COPY --from=one /greeting /srv/www/file /data/
ENV PLACE=there
COPY <<END /data/here
$PLACE
END
ENTRYPOINT ["/bin/cat"]
CMD ["/data/greeting"]
EXPOSE 80 53/udp
LABEL a="b c"
"""


def seen(told: str) -> bool:
    """Whether the step was done that prints it."""
    return re.search(r"(?m)^#\d+ \d+\.\d+ to be seen$", told) is not None


def test_a_whole_build_and_the_next(kubelet: Kubelet, tmp_path: Path) -> None:
    place = str(context(tmp_path, WHOLE, file="a file\n"))
    out, err = build(kubelet, "-t", NAME, "--build-arg", "WHO=you", "--label", "c=d", place)
    assert seen(err)
    assert in_image(kubelet, NAME) == "hello you\n"
    assert in_image(kubelet, NAME, "/tmp/user") == "1000\nmore\n"
    assert in_image(kubelet, NAME, "/data/here") == "there\n"
    found = config(kubelet, NAME)
    assert (found["Labels"], sorted(found["ExposedPorts"])) == ({"a": "b c", "c": "d"}, ["53/udp", "80/tcp"])
    assert found["User"] == "root"
    listing = crisp(kubelet, "run", "--entrypoint", "/bin/ls", NAME, "-ln", "/data/file").stdout.split()
    assert (listing[0], listing[2]) == (b"-rw-r-----", b"1000")
    # Nothing has changed: nothing is done, and the image is the same.
    again, err = build(kubelet, "-t", NAME, "--build-arg", "WHO=you", "--label", "c=d", place)
    assert (again, err.count("CACHED"), seen(err)) == (out, 6, False)
    os.utime(tmp_path / "file", (1, 1))
    assert build(kubelet, "-q", "--build-arg", "WHO=you", "--label", "c=d", place) == (out, "")
    # A file has: what does not depend on it is taken all the same.
    (tmp_path / "file").write_text("another\n")
    changed, err = build(kubelet, "-t", NAME, "--build-arg", "WHO=you", "--label", "c=d", place)
    assert (changed != out, seen(err)) == (True, False)
    shown = crisp(kubelet, "images").stdout.decode()
    assert (NAME in shown, "crisp-build" in shown) == (True, False)
    assert "crisp-build" in crisp(kubelet, "images", "-a").stdout.decode()
    told = json.loads(crisp(kubelet, "system", "df", "--format", "json").stdout.splitlines()[2])
    assert (told["Type"], told["TotalCount"] > 5, told["Size"] > 0) == ("Build cache", True, True)
    assert b"removed" in crisp(kubelet, "system", "prune", "-f").stdout
    assert in_image(kubelet, NAME, "/data/file") == "another\n"


def test_a_linked_copy_leaves_directories_and_links_as_they_are(kubelet: Kubelet, tmp_path: Path) -> None:
    text = (
        "FROM BASE\nRUN mkdir -p /tmp /real && chmod 1777 /tmp && ln -s /real /linked\n"
        "COPY --link file /tmp/x\nCOPY --link file /linked/y\n"
    )
    build(kubelet, "-t", NAME, str(context(tmp_path, text, file="text\n")))
    assert in_image(kubelet, NAME, "ls", "-ld", "/tmp").startswith("drwxrwxrwt")
    assert in_image(kubelet, NAME, "cat", "/tmp/x", "/real/y") == "text\ntext\n"
    assert in_image(kubelet, NAME, "ls", "-ld", "/linked").startswith("l")


def interrupt_beside(pid: int) -> None:
    """SIGINT to a thread that is not the main one, which goes on waiting: so it is when one comes just before it waits."""
    for task in sorted(Path(f"/proc/{pid}/task").iterdir(), reverse=True):
        blocked = re.search(r"SigBlk:\s(\w+)", (task / "status").read_text())
        if task.name != str(pid) and blocked is not None and not int(blocked[1], 16) & 1 << signal.SIGINT - 1:
            assert ctypes.CDLL(None).tgkill(pid, int(task.name), signal.SIGINT) == 0
            return
    raise AssertionError("it has no other thread")


def test_a_long_copy_ends_with_the_build(kubelet: Kubelet, tmp_path: Path) -> None:
    """It would take an hour: at a signal, and when another stage fails, nobody waits for it."""
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    context(tmp_path, "FROM BASE AS a\nCOPY large /x\nFROM BASE\nRUN echo fails; false\nCOPY --from=a /x /\n")
    _, err = build(kubelet, str(tmp_path), code=1)
    assert "Containerfile:4: RUN: the command ended with exit code 1" in err
    words = command(kubelet, "build", "--progress", "plain", "--target", "a", str(tmp_path))
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as building:
        assert building.stderr is not None
        while "COPY large" not in building.stderr.readline():
            assert building.poll() is None
        interrupt_beside(building.pid)
        try:
            assert building.wait(60) > 0
        finally:
            building.kill()


def test_stages_that_need_nothing_of_each_other_are_built_at_once(kubelet: Kubelet, tmp_path: Path) -> None:
    """Each waits for the other: one after the other they would wait for ever."""
    wait = "until [ -e /meet/{} ]; do sleep 0.01; done"
    mount = "--mount=type=cache,id=meet,target=/meet"
    place = context(
        tmp_path,
        f"FROM BASE AS a\nRUN {mount} touch /meet/a && {wait.format('b')}\nRUN echo A > /a\n"
        f"FROM BASE AS b\nRUN {mount} touch /meet/b && {wait.format('a')}\nRUN echo B > /b\n"
        "FROM BASE AS unused\nRUN false\n"
        "FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n",
    )
    build(kubelet, "-t", NAME, "-o", f"type=oci,dest={tmp_path}/out.tar", str(place))
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert "index.json" in archive.getnames()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FROM BASE\nRUN exit 3\n", ["Containerfile:2: RUN", "exit code 3"]),
        ("FROM BASE\n\nRNU true\n", ["Containerfile:3: ", "RUN"]),
        ("FROM BASE\nCOPY nosuch /\n", ["Containerfile:2: COPY", "nosuch"]),
        ("FROM localhost/no/such:image\n", ["Containerfile:1: FROM"]),
        ('FROM BASE\nRUN ["/no/such"]\n', ["Containerfile:2: RUN", "no such file"]),
        ("FROM BASE\nRUN --security=insecure true\n", ["Containerfile:2: RUN", "insecure"]),
        ("FROM BASE\nRUN --network=host true\n", ["Containerfile:2: RUN", "--allow network.host"]),
        ("FROM BASE\nRUN --mount=type=secret,id=x,required true\n", ["Containerfile:2: RUN", "--secret id=x"]),
        ("FROM BASE AS a\nRUN false\nFROM a\nRUN true\n", ["Containerfile:2: RUN", "exit code 1"]),
    ],
)
def test_what_is_wrong_is_said_with_its_place(kubelet: Kubelet, tmp_path: Path, text: str, words: list[str]) -> None:
    out, err = build(kubelet, str(context(tmp_path, text)), code=1)
    assert out == ""
    said = err[err.rindex("crisp: ") :]
    assert [word for word in words if word not in said] == [], err


@pytest.mark.parametrize(
    "words",
    [
        ["--output", "type=local", "."],
        ["--output", "type=image,name=x", "."],
        ["--push", "."],
        ["--tag", "Upper:::x", "."],
        ["--tag", "x@sha256:" + "0" * 64, "."],
        ["--secret", "src=x", "."],
        ["--progress", "x", "."],
    ],
)
def test_what_there_is_not_is_refused(kubelet: Kubelet, words: list[str]) -> None:
    assert build(kubelet, *words, code=2)[0] == ""


def test_a_line_that_does_not_end(kubelet: Kubelet, tmp_path: Path) -> None:
    """It is shown in pieces, and neither memory nor a log holds all of it."""
    text = "FROM BASE\nRUN head -c 40000000 /dev/zero | tr '\\0' a; printf end\n"
    _, err = build(kubelet, str(context(tmp_path, text)))
    shown = re.findall(r"(?m)^#\d+ \d+\.\d+ (a+|a*end)$", err)
    assert (sum(map(len, shown)), shown[-1][-3:], max(map(len, shown)) < 200_000) == (40_000_003, "end", True)


def test_a_context_on_the_standard_input(kubelet: Kubelet, tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, text in (("Dockerfile", b"FROM localhost/busybox:test\nCOPY file /\n"), ("file", b"sent\n")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    build(kubelet, "-t", NAME, "-", stdin=None, input=data.getvalue())
    assert in_image(kubelet, NAME, "cat", "/file") == "sent\n"
    iid = tmp_path / "id"
    out, err = build(
        kubelet,
        "--progress",
        "json",
        "--iidfile",
        str(iid),
        "-",
        stdin=None,
        input=b"FROM localhost/busybox:test\nRUN echo x\n",
    )
    assert iid.read_text() == out.strip()
    told = [json.loads(line) for line in err.splitlines()]
    assert [one["text"] for one in told if one["event"] == "output"] == ["x"]


def begun(kubelet: Kubelet, tmp_path: Path) -> subprocess.Popen[bytes]:
    """A build in the middle of a RUN."""
    place = context(tmp_path, "FROM BASE\nRUN --mount=type=tmpfs,target=/t echo begun; sleep 1000\n")
    running = subprocess.Popen(command(kubelet, "build", str(place)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stderr is not None
    while b"begun" not in (line := running.stderr.readline()) or b"RUN" in line:
        assert line
    return running


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_of_a_command_that_is_killed(kubelet: Kubelet, tmp_path: Path, number: signal.Signals) -> None:
    with begun(kubelet, tmp_path) as running:
        begin = time.monotonic()
        running.send_signal(number)
        assert running.wait() in (-number, 128 + number)
    wait_until(lambda: kubelet.daemon.leftovers() == [])
    assert time.monotonic() - begin < 1000  # before the command of the RUN has ended by itself


def test_nothing_stays_of_a_daemon_that_is_killed(kubelet: Kubelet, tmp_path: Path) -> None:
    with begun(kubelet, tmp_path) as running:
        kubelet.daemon.kill()
        assert running.stderr is not None
        assert b"the daemon has ended" in running.stderr.read()
        assert running.wait() == 1
    kubelet.daemon.start()
    assert kubelet.daemon.leftovers() == []


def test_a_base_from_a_registry_and_what_it_has_its_children_do(kubelet: Kubelet, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    try:
        name = f"{registry.host}/built/base:1"
        place = str(context(tmp_path, 'FROM BASE\nONBUILD RUN echo "done for $NAME" > /triggered\nENV NAME=you\n'))
        build(kubelet, "-t", name, "--push", place)
        assert crisp(kubelet, "rmi", name).returncode == 0
        build(kubelet, "-t", NAME, str(context(tmp_path, f"FROM {name}\nCMD cat /triggered\n")))
    finally:
        registry.close()
    assert in_image(kubelet, NAME) == "done for you\n"
