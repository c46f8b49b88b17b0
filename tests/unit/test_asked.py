"""crisp's own annotations: what they may hold, what comes of it, and what is refused."""

from __future__ import annotations

import pytest

from proto import api_pb2 as cri
from proto.errors import CrispError
from runtime.cli import lookup
from runtime.oci import asked


def container(**annotations: str) -> cri.ContainerConfig:
    own = {asked.PREFIX + key: text for key, text in annotations.items()}
    return cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"), annotations=own)


def pod(key: str, text: str) -> cri.PodSandboxConfig:
    return cri.PodSandboxConfig(annotations={key: text})


def test_a_tmpfs_is_docker_s_unless_it_says_otherwise() -> None:
    text = " /run \n/tmp/x/../y:size=64m,mode=1770,exec,ro\n\n"
    first, second = asked.tmpfs({"io.crisp.tmpfs/c": text}, container())
    assert first == {
        "destination": "/run",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "nodev", "noexec", "rw"],
    }
    assert (second["destination"], second["options"]) == (
        "/tmp/y",
        ["nosuid", "nodev", "exec", "ro", "size=64m", "mode=1770"],
    )
    [own] = asked.tmpfs({"io.crisp.tmpfs/c": text}, container(tmpfs="/own:uid=3,gid=4"))
    assert (own["destination"], own["options"][-2:]) == ("/own", ["uid=3", "gid=4"])
    assert asked.tmpfs({"io.crisp.tmpfs/other": text}, container()) == []


@pytest.mark.parametrize(
    "line",
    [
        *("run", "/", "//", "/x/..", "/proc", "/dev", "/dev/", "/proc/sys", "//sys/fs/cgroup", "/x/../proc/1", ":size=1"),
        *("/x:suid", "/x:dev", "/x:size", "/x:size=-1", "/x:size=1,mode=9", "/x:context=a", "/x:ro=1", "/x:size=1:ro"),
    ],
)
def test_a_tmpfs_that_is_refused(line: str) -> None:
    with pytest.raises(CrispError, match=r"io\.crisp\.tmpfs/c"):
        asked.tmpfs({"io.crisp.tmpfs/c": line}, container())
    with pytest.raises(CrispError, match=r"more than 100"):
        asked.tmpfs({"io.crisp.tmpfs/c": "/x\n" * 101}, container())


def test_sizes_of_shared_memory() -> None:
    for text, size in (("1", 1), ("256M", 256 << 20), ("1gb", 1 << 30), ("2KiB", 2048), ("", 7)):
        assert asked.shm_size(pod(asked.SHM_SIZE, text), 7) == size
    for text in ("0", "-1", "much", "1%", "9999999T", "1.5M"):
        with pytest.raises(CrispError, match=r"io\.crisp\.shm-size"):
            asked.check(pod(asked.SHM_SIZE, text))
    nodes = pod(asked.SHM_SIZE, "1M")
    nodes.linux.security_context.namespace_options.ipc = cri.NODE
    with pytest.raises(CrispError, match=r"the node's /dev/shm"):
        asked.check(nodes)


def test_lines_of_hosts() -> None:
    text = "10.1.2.3 db db.example\n\n  fd00::7\tsix\nhost-gateway node"
    assert asked.hosts(pod(asked.HOSTS, text), "10.0.0.1") == ["10.1.2.3\tdb db.example", "fd00::7\tsix", "10.0.0.1\tnode"]
    asked.check(pod(asked.HOSTS, text))
    with pytest.raises(CrispError, match="does not tell the node's address"):
        asked.hosts(pod(asked.HOSTS, text), "")
    for bad in (
        "10.1.2.3",
        "db 10.1.2.3",
        "10.1.2 x",
        "10.1.2.3 a#b",
        "fe80::1%eth0 x",
        "10.1.2.3 -x",
        "1.2.3.4 x\n" * 1001,
    ):
        with pytest.raises(CrispError, match=r"io\.crisp\.hosts"):
            asked.check(pod(asked.HOSTS, bad))


def test_removal_is_yes_or_no() -> None:
    assert asked.REMOVE_AT_END == lookup.REMOVE_AT_END
    assert asked.removed_at_end({asked.REMOVE_AT_END: "true"})
    assert not asked.removed_at_end({asked.REMOVE_AT_END: "false"})
    assert not asked.removed_at_end({})
    for text in ("yes", "", "True"):
        with pytest.raises(CrispError, match=r"io\.crisp\.remove-at-end"):
            asked.check(pod(asked.REMOVE_AT_END, text))
