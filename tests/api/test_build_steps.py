"""What a RUN of a Containerfile has besides its image: mounts, networks, limits. Nothing of it is in a layer."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from tests.api.building import NAME, build, context, in_image
from tests.api.test_command import IMAGE, crisp
from tests.harness import pure_v2
from tests.harness.kubelet import Kubelet

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("no_images_stay")]


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


def test_mount_points_behind_links_to_nothing(kubelet: Kubelet, tmp_path: Path) -> None:
    """They are made where the links lead, in the image, and are in no layer."""
    outside = tmp_path / "outside"
    links = f"ln -s /far/away /linked && ln -s ../..{outside} /out && ln -s ../x/../other /up && ln -s file /to-file"
    mounts = "type=cache,target=/linked", "type=tmpfs,target=/out/in", "type=tmpfs,target=/up", "target=/to-file,source=file"
    look = "test -d /far/away && test -d /other && grep -q text /file && touch /linked/x /out/in/x /other/x"
    text = f"FROM BASE\nRUN {links}\nRUN --mount={' --mount='.join(mounts)} {look}\n"
    (tmp_path / "context").mkdir()
    build(kubelet, "-t", NAME, str(context(tmp_path / "context", text, file="text\n")))
    assert not outside.exists()
    there = in_image(kubelet, NAME, "find", "/", "/tmp", "-mindepth", "1", "-maxdepth", "1").split()
    assert {"/linked", "/out", "/to-file", "/up"} <= set(there)
    assert not [path for path in there if path in ("/far", "/other", "/x", "/file") or path.startswith("/tmp/")]


@pytest.mark.parametrize("target", ["/loop", "/loop/x", "/", "/../a/.."])
def test_where_nothing_can_be_mounted(kubelet: Kubelet, tmp_path: Path, target: str) -> None:
    text = f"FROM BASE\nRUN ln -s /loop /loop\nRUN --mount=type=tmpfs,target={target} true\n"
    _, err = build(kubelet, str(context(tmp_path, text)), code=1)
    assert f"Containerfile:3: RUN: --mount: {target}: " in err


def test_mounts_in_mounts(kubelet: Kubelet, tmp_path: Path) -> None:
    """In whatever order they are named. One that is read-only has to have the inner place, for runc as for BuildKit."""
    inner = "type=cache,target=/a/b/c"
    look = "echo x > /a/b/c/x; touch /a/b/y && test -e /a/file && cat /a/b/c/x"
    for mounts in ((inner, "type=tmpfs,target=/a/b", "target=/a,rw"), ("target=/a,rw", inner, "type=tmpfs,target=/a/b")):
        text = f"FROM BASE\nRUN --mount={' --mount='.join(mounts)} {look}\nRUN test ! -e /a\n"
        build(kubelet, "--no-cache", str(context(tmp_path, text, file="text\n")))
    assert sorted(os.listdir(tmp_path)) == ["Containerfile", "file"]


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
