"""`crisp build`: images from Containerfiles, made on a real daemon, and what stays of a build that is killed: nothing."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from runtime.cli import build_output
from tests.api.test_command import IMAGE, command, crisp
from tests.harness import pure_v2
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until
from tests.images.registry_server import Registry

pytestmark = pytest.mark.root

NAME = "localhost/built-app:1"


@pytest.fixture(autouse=True)
def no_images_stay(kubelet: Kubelet) -> Iterator[None]:
    yield
    wait_until(lambda: not list(kubelet.daemon.root.glob("builds/*")))
    kubelet.client.admin.PruneBuildCache(admin.PruneBuildCacheRequest())
    for image in kubelet.images.ListImages(cri.ListImagesRequest()).images:
        if any("/built" in tag for tag in image.repo_tags):
            kubelet.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image.id)))


def context(directory: Path, containerfile: str, **files: str) -> Path:
    for name, text in {"Containerfile": containerfile, **files}.items():
        (directory / name).write_text(text.replace("BASE", IMAGE))
    return directory


def build(kubelet: Kubelet, *words: str, code: int = 0, **options: Any) -> tuple[str, str]:
    """What it prints, on both outputs."""
    done = crisp(kubelet, "build", *words, **options)
    assert done.returncode == code, done
    return done.stdout.decode(), done.stderr.decode()


def in_image(kubelet: Kubelet, image: str, *words: str) -> str:
    done = crisp(kubelet, "run", image, *words)
    assert done.returncode == 0, done
    return str(done.stdout.decode())


def document(kubelet: Kubelet, image: str) -> dict[str, Any]:
    reply = kubelet.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=image), verbose=True))
    found: dict[str, Any] = json.loads(reply.info["info"])["imageSpec"]
    return found


def config(kubelet: Kubelet, image: str) -> dict[str, Any]:
    found: dict[str, Any] = document(kubelet, image)["config"]
    return found


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


MOUNTS = """
FROM BASE
RUN --mount=type=cache,target=/var/deep/cache echo again >> /var/deep/cache/log && wc -l < /var/deep/cache/log
RUN --mount=type=secret,id=token --mount=type=secret,id=word,env=WORD \\
  cat /run/secrets/token && echo "$WORD" && stat -c %a /run/secrets/token
RUN --mount=type=bind,target=/source --mount=type=bind,from=BASE,source=/etc,target=/other \\
  cat /source/file && ls /source /other/passwd
RUN --mount=type=cache,target=/filled,from=BASE,source=/etc ls /filled/passwd
RUN --mount=type=bind,target=/source,rw echo gone > /source/file
RUN --mount=type=ssh test -S "$SSH_AUTH_SOCK" && echo an agent
RUN --mount=type=tmpfs,target=/scratch echo x > /scratch/file && grep -c /scratch /proc/mounts
RUN <<END
#!/bin/cat
a script
END
RUN <<END
echo two
echo lines
END
RUN ls -d /run /var/deep /filled /source /other /scratch 2> /dev/null; true
"""


def test_mounts_of_a_step(kubelet: Kubelet, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the token\n")
    (tmp_path / "context").mkdir()
    place = str(context(tmp_path / "context", MOUNTS, file="of the context\n", hidden="x"))
    (tmp_path / "context/.dockerignore").write_text("hidden\n")
    environment = {**os.environ, "WORD": "a word"}
    words = ["--secret", f"id=token,src={secret}", "--secret", "id=word,env=WORD", "--ssh", f"default={tmp_path}/agent"]
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(f"{tmp_path}/agent")
        _, err = build(kubelet, *words, place, env=environment)
    told = [line.split(" ", 2)[2] for line in err.splitlines() if line.split(" ")[1][:2] in ("0.", "1.", "2.", "3.")]
    assert told == [
        *("1", "the token", "a word", "400", "of the context", "/other/passwd", ""),
        *("/source:", "Containerfile", "file", "/filled/passwd", "an agent", "1", "#!/bin/cat", "a script", "two", "lines"),
    ]
    assert (tmp_path / "context/file").read_text() == "of the context\n"
    (tmp_path / "context/Containerfile").write_text(f"FROM {IMAGE}\n" + MOUNTS.splitlines()[2])
    assert " 2\n" in build(kubelet, "--no-cache", place)[1]  # the cache has stayed
    assert len(list(kubelet.daemon.root.glob("build-cache/*"))) == 2
    assert crisp(kubelet, "system", "prune", "-f").returncode == 0
    assert not list(kubelet.daemon.root.glob("build-cache/*"))


def test_links_lead_no_mount_out(kubelet: Kubelet, tmp_path: Path) -> None:
    """Neither a link in an image nor one in the context shows a step a file of the host."""
    host = tmp_path / "of-the-host"
    host.mkdir()
    (host / "file").write_text("of the host")
    (tmp_path / "context").mkdir()
    (tmp_path / "context/link").symlink_to(host)
    place = tmp_path / "context"
    for mount in ("from=a,source=/link", "from=a,rw,source=/link", "source=link"):
        text = f"FROM BASE AS a\nRUN ln -s {host} /link\nFROM BASE\nRUN --mount=target=/t,{mount} ls /t/ && cat /t/file\n"
        _, err = build(kubelet, str(context(place, text)), code=1)
        assert "of the host" not in err
        assert "Containerfile:4: RUN" in err


def test_mount_points_behind_links_are_in_no_layer(kubelet: Kubelet, tmp_path: Path) -> None:
    mounts = "--mount=type=cache,target=/linked/cache --mount=type=tmpfs,target=/a/../b//c/./d"
    text = f"FROM BASE\nRUN mkdir /real && ln -s /real /linked\nRUN {mounts} test -d /real/cache && test -d /b/c/d\n"
    build(kubelet, "-t", NAME, str(context(tmp_path, text)))
    assert in_image(kubelet, NAME, "find", "/real") == "/real\n"
    assert "b\n" not in in_image(kubelet, NAME, "ls", "/").splitlines(keepends=True)


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


def test_the_same_moment_makes_the_same_image(kubelet: Kubelet, tmp_path: Path) -> None:
    place = str(context(tmp_path, "FROM BASE\nRUN date > /dev/null; echo x > /x\nCOPY file /\nCMD x\n", file="text"))
    made = set()
    for moment in (1, 2):
        os.utime(tmp_path / "file", (2_000_000_000 + moment, 2_000_000_000 + moment))
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
        made.add(build(kubelet, "--no-cache", "-q", place, env=environment)[0])
    assert len(made) == 1


SQUASHED = """
FROM BASE AS below
RUN mkdir /gone && echo x > /gone/x && echo kept > /kept
FROM below
RUN rm -r /gone /etc/group && echo changed > /kept && ln /kept /link && chmod 700 /var
ENV A=b
RUN rm -r /home && mkdir /home && echo y > /home/y
CMD ["cat", "/kept"]
"""


def test_one_layer_of_all_that_is_new(kubelet: Kubelet, tmp_path: Path) -> None:
    place = str(context(tmp_path, SQUASHED))
    names = ("localhost/built-layers:1", "localhost/built-squashed:1")
    for name, words in zip(names, ([], ["--squash"]), strict=True):
        build(kubelet, "-t", name, *words, place)
    system = "! -path '/dev*' ! -path '/proc*' ! -path '/sys*' ! -path '/etc*'"
    look = f"find / -xdev -mindepth 1 {system} | sort | xargs stat -c '%n %f %u %g %Y'; stat -c %h /kept; cat /kept /home/*"
    layers, squashed = (in_image(kubelet, name, "/bin/sh", "-c", look) for name in names)
    assert squashed == layers
    assert "/gone" not in squashed
    of_layers, of_squashed = (document(kubelet, name) for name in names)
    assert of_squashed["config"] == of_layers["config"]
    assert [line["created_by"] for line in of_squashed["history"]] == [line["created_by"] for line in of_layers["history"]]
    counts = [sum(not line.get("empty_layer") for line in one["history"]) for one in (of_layers, of_squashed)]
    assert counts == [4, 2], "the base, and three or one"


def test_one_layer_of_nothing(kubelet: Kubelet, tmp_path: Path) -> None:
    """The base as it is, or with another configuration alone; it is a plain directory, which has no history yet."""
    out, _ = build(kubelet, "--squash", "-q", str(context(tmp_path, "FROM BASE\n")))
    assert out.strip() == kubelet.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=IMAGE))).image.id
    place = str(context(tmp_path, 'FROM BASE\nENV A=b\nCMD ["x"]\n'))
    found = []
    for words in ([], ["--squash"], ["--squash", "--build-arg", "SOURCE_DATE_EPOCH=1"]):
        build(kubelet, "-t", NAME, *words, place)
        told = [(line["created_by"], line.get("empty_layer", False)) for line in document(kubelet, NAME)["history"]]
        found.append((told, config(kubelet, NAME)))
    assert found[0] == found[1] == found[2]
    assert found[0][0] == [("crisp: a plain directory", False), ("ENV A=b", True), ('CMD ["x"]', True)]


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


def test_networks_and_limits_of_steps(kubelet: Kubelet, tmp_path: Path) -> None:
    place = str(
        context(
            tmp_path,
            "FROM BASE\n"
            "RUN echo pod $(ls /sys/class/net | grep -c eth0)\n"
            "RUN --network=none echo none $(ls /sys/class/net | grep -c eth0); ping -c 1 127.0.0.1 > /dev/null && echo lo\n"
            "RUN --network=host readlink /proc/self/ns/net\n"
            "RUN ulimit -n; grep -c db.example /etc/hosts; df -k /dev/shm | grep -o ' 1024 ' | head -n 1\n"
            "RUN cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2> /dev/null; true\n",
        )
    )
    limits = [] if pure_v2.missing_controllers("memory", "cpu") else ["-m", "64M", "--cpus", "1"]
    limits += ["--shm-size", "1M", "--ulimit", "nofile=77", "--add-host", "db.example:10.1.2.3"]
    _, err = build(kubelet, "--allow", "network.host", *limits, place)
    told = re.findall(r"(?m)^#\d+ \d+\.\d+ (.*)$", err)
    assert told[:7] == ["pod 1", "none 0", "lo", os.readlink("/proc/self/ns/net"), "77", "1", " 1024 "]
    assert told[7:] == [str(64 << 20)] or "-m" not in limits


def test_outputs(kubelet: Kubelet, tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    place = str(context(tmp_path / "context", "FROM scratch\nCOPY --chown=7:8 d /d/\n"))
    (tmp_path / "context/d").mkdir()
    (tmp_path / "context/d/file").write_text("a file")
    (tmp_path / "context/d/link").symlink_to("/etc/passwd")
    build(kubelet, "-o", f"{tmp_path}/out", place)
    copied = tmp_path / "out/d/file"
    assert (copied.read_text(), copied.stat().st_uid) == ("a file", 0)
    assert os.readlink(tmp_path / "out/d/link") == "/etc/passwd"
    done = subprocess.run(command(kubelet, "build", "-o", "-", place), check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        members = {member.name: member for member in archive}
    assert sorted(members) == ["d", "d/file", "d/link"]
    assert (members["d/file"].uid, members["d/link"].linkname) == (7, "/etc/passwd")
    done = subprocess.run(command(kubelet, "build", "-t", NAME, "-o", "type=docker", place), check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        assert [one["RepoTags"] for one in json.load(manifest)] == [[NAME]]


@pytest.mark.parametrize("kind", ["oci", "tar"])
def test_an_output_that_is_there(kubelet: Kubelet, tmp_path: Path, kind: str) -> None:
    """A file is replaced, what a link leads to is written; the standard output is the command's and not the daemon's."""
    (tmp_path / "context").mkdir()
    words = ["build", "-q", str(context(tmp_path / "context", "FROM scratch\nCOPY file /\n", file="text")), "-o"]
    (tmp_path / "linked").write_text("old")
    (tmp_path / "out").symlink_to(tmp_path / "linked")
    (tmp_path / "file").write_text("old")
    for place in ("out", "file"):
        assert crisp(kubelet, *words, f"type={kind},dest={tmp_path}/{place}").returncode == 0
        with tarfile.open(tmp_path / place) as archive:
            assert len(archive.getnames()) > 0
    assert (tmp_path / "out").is_symlink()
    piped = crisp(kubelet, *words, f"type={kind},dest=/dev/stdout")
    assert piped.stdout.startswith((tmp_path / "file").read_bytes()[:100]), piped
    assert os.path.islink("/dev/stdout")
    full = crisp(kubelet, *words, f"type={kind},dest=/dev/full")
    assert (full.returncode, full.stderr.count(b"\n")) == (1, 1), full
    assert sorted(os.listdir(tmp_path)) == ["context", "file", "linked", "out"]


def test_capabilities_and_attributes_are_in_an_archive(tmp_path: Path) -> None:
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # bytes, and no text
    (tmp_path / "file").write_text("")
    os.setxattr(tmp_path / "file", "security.capability", capability)
    os.setxattr(tmp_path / "file", "user.word", b"value\xff")
    (tmp_path / "link").symlink_to("nowhere")
    data = io.BytesIO()
    build_output._tar(str(tmp_path), data)
    (tmp_path / "out").mkdir()
    words = ["tar", "--xattrs", "--xattrs-include=*", "-xf", "-", "-C", str(tmp_path / "out")]
    subprocess.run(words, input=data.getvalue(), check=True)
    assert os.getxattr(tmp_path / "out/file", "security.capability") == os.getxattr(tmp_path / "file", "security.capability")
    assert os.getxattr(tmp_path / "out/file", "user.word") == b"value\xff"


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
