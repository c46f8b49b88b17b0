"""kernel/cgroups.py: paths and modes, without touching a cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel import cgroups, mounts
from kernel.cgroups import Mode

V1 = rb"""31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
"""
HYBRID = V1 + b"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"


def test_v1() -> None:
    found = cgroups.detect(mounts.parse(V1))
    assert (found.mode, found.unified) == (Mode.V1, "")
    assert set(found.controllers) == {"cpu", "cpuacct", "memory", "freezer", "name=systemd"}
    assert found.roots()[0] == "/sys/fs/cgroup/freezer"
    assert len(found.roots()) == 4


def test_hybrid_keeps_its_limits_in_v1() -> None:
    found = cgroups.detect(mounts.parse(HYBRID))
    assert (found.mode, found.unified) == (Mode.HYBRID, "/sys/fs/cgroup/unified")
    assert found.group("a/b").directory("memory") == "/sys/fs/cgroup/memory/a/b"
    assert found.group("/a/b").directory() == "/sys/fs/cgroup/freezer/a/b"


def test_v2() -> None:
    found = cgroups.detect(mounts.parse(b"31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"))
    assert (found.mode, found.unified) == (Mode.V2, "/sys/fs/cgroup")
    assert found.group("x").directory("memory") == "/sys/fs/cgroup/x"


@pytest.mark.parametrize(("options", "quick"), [(b"rw", False), (b"rw,nsdelegate,favordynmods", True)])
def test_how_quick_moves_are(options: bytes, quick: bool) -> None:
    table = V1 + b"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 " + options + b"\n"
    assert cgroups.quick_moves(mounts.parse(table)) is quick
    assert not cgroups.quick_moves(mounts.parse(V1))


@pytest.mark.parametrize(
    ("parent", "path"),
    [
        ("/kubepods/besteffort/pod1", "kubepods/besteffort/pod1"),
        ("kubepods-besteffort-pod1_2.slice", "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice"),
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods.slice/kubepods-pod1.slice"),
        ("system.slice", "system.slice"),
        ("-.slice", ""),
        ("", ""),
        ("/", ""),
    ],
)
def test_parent_path(parent: str, path: str) -> None:
    assert cgroups.parent_path(parent) == path


def test_paths_of_a_container() -> None:
    assert cgroups.oci_path("/kubepods/pod1", "abc", systemd=False) == "/kubepods/pod1/abc"
    assert cgroups.container_path("/kubepods/pod1", "abc", systemd=False) == "kubepods/pod1/abc"
    assert cgroups.oci_path("", "abc", systemd=False) == "/abc"
    assert cgroups.oci_path("kubepods-pod1.slice", "abc", systemd=True) == "kubepods-pod1.slice:crisp:abc"
    assert (
        cgroups.container_path("kubepods-pod1.slice", "abc", systemd=True)
        == "kubepods.slice/kubepods-pod1.slice/crisp-abc.scope"
    )


def test_flat_files(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("low 0\noom_kill 3\nbad\nworse x\n")
    assert cgroups.read_flat(str(tmp_path / "memory.events")) == {"low": 0, "oom_kill": 3}
    assert cgroups.read_flat(str(tmp_path / "missing")) == {}


def test_v2_events_decide_about_emptiness(tmp_path: Path) -> None:
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert cgroups.tree_populated(str(tmp_path))
    (tmp_path / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    assert not cgroups.tree_populated(str(tmp_path))


def test_processes_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "cgroup.procs").write_text("4\n0\n")
    (tmp_path / "inner/cgroup.procs").write_text("5\n")
    assert cgroups.tree_procs(str(tmp_path)) == {4, 5}
    assert list(cgroups.walk(str(tmp_path))) == [str(tmp_path / "inner"), str(tmp_path)]
    assert cgroups.tree_procs(str(tmp_path / "gone")) == set()
