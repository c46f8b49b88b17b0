"""Options of docker's that the CRI has no field for: `crisp run` says them by annotations, which everybody may use."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import subprocess
from pathlib import Path

import grpc
import pytest

from proto import api_pb2 as cri
from tests.api.test_command import IMAGE, command, crisp, logs, pods
from tests.api.test_docker_names import said
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root


def test_file_systems_in_memory(kubelet: Kubelet) -> None:
    script = (
        "grep -E ' (/run|/var/cache|/dev/shm) ' /proc/mounts; stat -c %a /run;"
        " echo x >/run/x && echo y >/var/cache/x || echo ro;"
        " cp /bin/busybox /run/echo; /run/echo ran 2>/dev/null || echo not run"
    )
    words = ["--tmpfs", "/run:size=64k,mode=750", "--mount", "type=tmpfs,target=/var/cache,tmpfs-size=1m,ro"]
    told = said(kubelet, "run", "--read-only", *words, "--shm-size", "3M", IMAGE, "/bin/sh", "-c", script).splitlines()
    mounts = {line.split()[1]: line.split()[3].split(",") for line in told[:3]}
    assert {"rw", "nosuid", "nodev", "noexec", "size=64k", "mode=750"} <= set(mounts["/run"])
    assert {"ro", "size=1024k"} <= set(mounts["/var/cache"])
    assert "size=3072k" in mounts["/dev/shm"]
    assert told[3:] == ["750", "ro", "not run"]


def test_hosts_and_limits(kubelet: Kubelet) -> None:
    words = ["--add-host", "db:10.1.2.3", "--add-host", "six=[fd00::7]", "--add-host", "node:host-gateway"]
    script = "cat /etc/hosts; ulimit -n; ulimit -Hn; ulimit -c"
    words += ["--ulimit", "nofile=128:256", "--ulimit", "core=0"]
    told = said(kubelet, "run", *words, IMAGE, "/bin/sh", "-c", script).splitlines()
    assert {"10.1.2.3\tdb", "fd00::7\tsix"} <= set(told)
    [gateway] = [line.split()[0] for line in told if line.endswith("\tnode")]
    assert re.fullmatch(r"[\d.]+|[\da-f:]+", gateway)
    assert told[-3:] == ["128", "256", "0"]


def test_without_a_network(kubelet: Kubelet) -> None:
    told = said(kubelet, "run", "--network", "none", IMAGE, "/bin/sh", "-c", "ls /sys/class/net; ip -o addr show lo")
    assert told.split()[0] == "lo"
    assert "127.0.0.1/8" in told
    assert "eth0" not in told


def test_an_init_takes_in_what_is_left_behind(kubelet: Kubelet) -> None:
    """The command is not the first process, and no zombie stays."""
    script = "echo $$; (sleep 0.1 & ) ; sleep 0.5; ps -o stat,comm | grep -c ^Z; cat /proc/1/comm; exit 4"
    done = crisp(kubelet, "run", "--init", IMAGE, "/bin/sh", "-c", script)
    first, zombies, init = done.stdout.decode().split()
    assert (done.returncode, int(first) > 1, zombies, init) == (4, True, "0", "crisp-pause")


def test_users_of_its_own(kubelet: Kubelet, tmp_path: Path) -> None:
    kubelet.need_handler("", user_namespaces=True)
    tmp_path.chmod(0o755)
    (tmp_path / "data").mkdir()
    script = "id -u; cat /proc/self/uid_map; touch /data/mine"
    words = ["--userns", "auto", "-v", f"{tmp_path}/data:/data", IMAGE, "/bin/sh", "-c", script]
    told = said(kubelet, "run", *words).split()
    assert told[0] == "0"
    inside, outside, count = map(int, told[1:4])
    assert (inside, outside % 65536, outside >= 1 << 29, count) == (0, 0, True, 65536)
    assert (tmp_path / "data/mine").stat().st_uid == 0, "root in there is root for its volumes"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--tmpfs", "/proc/x"], "nothing is put over /proc/x"),
        (["--add-host", "x:10.1"], "neither an IP address"),
        (["--shm-size", "1M", "--ipc", "host"], "the node's /dev/shm"),
        (["--gpus", "all"], "nvidia.com/gpu"),
        (["--pod", "nosuch"], "no such pod: nosuch"),
    ],
)
def test_what_the_daemon_refuses(kubelet: Kubelet, words: list[str], reason: str) -> None:
    before = pods(kubelet)
    refused = crisp(kubelet, "run", *words, IMAGE, "true")
    assert (refused.returncode, reason in refused.stderr.decode()) == (125, True), refused
    assert pods(kubelet) == before


def test_the_annotations_are_everybody_s(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.annotations["io.crisp.shm-size"] = "1M"
    config.annotations["io.crisp.tmpfs/one"] = "/scratch:size=1m"
    config.annotations["io.crisp.hosts"] = "10.9.8.7 other"
    pod = kubelet.pod(config)
    one, two = (cri.ContainerConfig(metadata=cri.ContainerMetadata(name=name)) for name in ("one", "two"))
    script = "grep -c /scratch /proc/mounts; grep -c other /etc/hosts"
    assert pod.shell(script, config=one).output().split() == ["1", "1"]
    assert pod.shell(script, config=two).output().split() == ["0", "1"]
    config = kubelet.pod_config()
    config.annotations["io.crisp.shm-size"] = "none"
    with pytest.raises(grpc.RpcError, match="is no size such as"):
        kubelet.pod(config)
    refused = cri.ContainerConfig(annotations={"io.crisp.remove-at-end": "perhaps"})
    with pytest.raises(grpc.RpcError, match="neither true nor false"):
        pod.create("true", config=refused)


def test_how_an_image_was_made(kubelet: Kubelet) -> None:
    said(kubelet, "run", "--keep", "--name", "maker", IMAGE, "/bin/sh", "-c", "echo made >/made")
    said(kubelet, "commit", "maker", "localhost/made:1")
    said(kubelet, "rm", "maker")
    rows = [json.loads(line) for line in said(kubelet, "history", "localhost/made:1", "--format", "json").splitlines()]
    assert rows[0]["CreatedBy"] == "crisp image commit"
    assert rows[0]["ID"].startswith("sha256:")
    assert [row["ID"] for row in rows[1:]] == ["<missing>"] * (len(rows) - 1)
    assert all(row["Size"] > 0 for row in rows)
    shown = said(kubelet, "history", "localhost/made:1").splitlines()
    assert shown[0].split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert len(shown) == len(rows) + 1
    assert said(kubelet, "history", "-q", IMAGE).split() == [kubelet.image]
    said(kubelet, "rmi", "localhost/made:1")


def test_lists_of_what_happens_and_what_is_used(kubelet: Kubelet) -> None:
    container = kubelet.pod().run("/bin/sleep", "1000")
    name = container.pod.config.metadata.name
    used = said(
        kubelet, "stats", "--format", "{{.pod}} {{.container}}", name, "-f", f"container={container.status().metadata.name}"
    )
    assert used.split() == [f"tests/{name}", container.status().metadata.name]
    refused = crisp(kubelet, "stats", "nobody")
    assert (refused.returncode, b"no such container" in refused.stderr) == (1, True)
    words = command(kubelet, "events", "-f", f"pod={name}", "-f", "event=stopped", "--format", "{{.event}} {{.kind}}")
    with subprocess.Popen(words, stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        while not select.select([watching.stdout], [], [], 0)[0]:  # until it listens
            container.pod.shell("true")
        assert watching.stdout.readline() == b"stopped container\n"
        watching.terminate()


@pytest.mark.parametrize(
    "words",
    [
        ["--device", "/no/such"],
        ["--device", "no.such/kind=1"],
        ["--mount", "type=bind,source=/no/such,target=/there"],
        ["--security-opt", "seccomp=/no/such"],
        ["--security-opt", "seccomp=/proc"],
        ["--runtime", "no-such"],
        ["--pod", "no-such"],
        ["--pull", "never", "localhost/no/such:1"],
        ["--ip", "10.1.2.3"],
        ["-v", "/etc/passwd:/tmp"],
        ["-u", "no-such"],
        ["--cap-add", "no-such"],
    ],
)
def test_what_there_is_not_on_this_node(kubelet: Kubelet, words: list[str]) -> None:
    """A failure of crisp's, and not of the command: whatever its words are."""
    before = logs(kubelet)
    refused = crisp(kubelet, "run", *words, IMAGE, "/bin/echo", "it runs")
    assert (refused.returncode, refused.stdout, b"crisp" in refused.stderr) == (125, b"", True), refused
    assert (pods(kubelet), logs(kubelet)) == ([], before)
    assert not os.path.exists("/no")


def test_what_is_wrong_is_told_from_what_the_command_says(kubelet: Kubelet) -> None:
    assert crisp(kubelet, "run", IMAGE, "/bin/sh", "-c", "exit 2").returncode == 2
    words = ["run", "--entrypoint", "/bin/sh", "-v", "/etc/passwd:/etc/shells", IMAGE]
    for path, code in (("/no/such file", 127), ("/etc/passwd", 126), ("/etc", 126), ("/etc/passwd/x", 126)):
        assert crisp(kubelet, "run", IMAGE, path).returncode == code, path
    assert crisp(kubelet, *words, "-c", "/no/such").returncode == 127, "the shell's"


def test_free_ports_of_the_node(kubelet: Kubelet, tmp_path: Path) -> None:
    """-p without the node's port, and -P for what the image exposes; one that is asked for is there."""
    name, document = "localhost/built-exposing:1", tmp_path / "Containerfile"
    document.write_text(f"FROM {IMAGE}\nEXPOSE 80 81/udp\n")
    assert crisp(kubelet, "build", "-q", "-t", name, str(tmp_path)).returncode == 0
    file = tmp_path / "id"
    words = ["run", "-d", "--name", "open", "-P", "-p", "127.0.0.1::82", "--network", "bridge", "--platform", "linux"]
    words[-1:] = ["linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)]
    key = said(kubelet, *words, "--cidfile", str(file), "-q", name, "/bin/sh", "-c", "httpd -f -h /etc -p 80").strip()
    assert file.read_text() == key
    ports = dict(line.split(" -> ") for line in said(kubelet, "port", "open").splitlines())
    assert set(ports) == {"80/tcp", "81/udp", "82/tcp"}
    assert ports["82/tcp"].startswith("127.0.0.1:")
    told: list[bytes] = []

    def answered() -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", int(ports["80/tcp"].split(":")[1]))) as web,
        ):
            web.sendall(b"GET /passwd HTTP/1.0\r\n\r\n")
            told.append(web.recv(100))
        return bool(told)

    wait_until(answered)
    assert b"200 OK" in told[0]
    refused = crisp(kubelet, "run", "--cidfile", str(file), IMAGE, "/bin/true")
    assert (refused.returncode, file.read_text()) == (125, key)
    assert crisp(kubelet, "run", "--cidfile", str(tmp_path / "other"), "--device", "/no/such", IMAGE, "/x").returncode == 125
    assert not (tmp_path / "other").exists()
    said(kubelet, "rm", "-f", "open")
    said(kubelet, "rmi", name)
    said(kubelet, "system", "prune", "-f")
