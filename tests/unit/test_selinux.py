"""SELinux labels, levels, and relabelling; a fake of the files' labels stands for a host that has SELinux."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernel import lsm, removal
from proto import api_pb2 as cri
from proto.errors import Code, CrispError
from runtime.oci import selinux
from runtime.oci.selinux import Labels
from runtime.pods import selinux as pods_selinux
from shim import relabel

DEFAULTS = Labels(selinux.DEFAULT_PROCESS, selinux.DEFAULT_FILE)


def test_policy_defaults(tmp_path: Path) -> None:
    assert selinux.policy_defaults(tmp_path) == DEFAULTS
    (tmp_path / "mls" / "contexts").mkdir(parents=True)
    (tmp_path / "config").write_text("# SELINUXTYPE=x\nSELINUX=enforcing\nSELINUXTYPE=mls\n")
    (tmp_path / "mls" / "contexts" / "lxc_contexts").write_text('process = "a:b:c:s0"\nfile = "d:e:f:s0"\ncontent = "x"\n')
    assert selinux.policy_defaults(tmp_path) == Labels("a:b:c:s0", "d:e:f:s0")


def test_levels_are_unique() -> None:
    taken: set[str] = set()
    for _ in range(500):
        level = selinux.unique_level(taken)
        assert level not in taken
        first, second = (int(part.removeprefix("c")) for part in level.removeprefix("s0:").split(","))
        assert 0 <= first < second < selinux.CATEGORIES
        taken.add(level)


def test_no_level_left() -> None:
    everything = [""] * (selinux.CATEGORIES * (selinux.CATEGORIES - 1) // 2)
    with pytest.raises(CrispError) as caught:
        selinux.unique_level(everything)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


def test_labels() -> None:
    def of(privileged: bool = False, **options: str) -> Labels:
        return selinux.labels(cri.SELinuxOption(**options), DEFAULTS, "s0:c1,c2", privileged=privileged)

    assert of() == Labels("system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2")
    assert of(level="s0:c7,c8").file.endswith(":s0:c7,c8")
    assert of(user="u", role="r", type="t").process == "u:r:t:s0:c1,c2"
    assert of(user="u", role="r", type="t").file == "u:object_r:container_file_t:s0:c1,c2"
    assert of(privileged=True).process == "system_u:system_r:spc_t:s0"
    assert not of(privileged=True).relabel
    assert not of(type="spc_t").relabel


def test_relabel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, str] = {}
    order: list[str] = []

    def place(path: str) -> str:
        """Whose name is looked up in an open directory."""
        directory, name = os.path.split(path)
        return os.path.join(os.readlink(directory) if directory.startswith("/proc/self/fd/") else directory, name)

    def set_label(path: str, label: str) -> None:
        known[place(path)] = label
        order.append(place(path))

    monkeypatch.setattr(lsm, "file_label", lambda path: known.get(place(path), ""))
    monkeypatch.setattr(lsm, "set_file_label", set_label)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f").touch()
    os.symlink("/etc", tmp_path / "link")
    arguments = {"paths": [str(tmp_path)], "label": "L"}
    assert relabel.relabel(arguments, [], None) == {"changed": 5}
    assert order[-1] == str(tmp_path)
    assert not any(path.startswith("/etc") for path in order)
    (tmp_path / "new").touch()
    assert relabel.relabel(arguments, [], None) == {"changed": 0}, "the root says that it was done"
    deep = os.open(tmp_path / "a", os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    assert relabel.relabel({"paths": [str(tmp_path / "a")], "label": "M"}, [], None)["changed"] == 1103
    removal.remove_tree(tmp_path / "a")
    for path in ("/", "/etc", "/usr/"):
        with pytest.raises(CrispError, match="belongs to the host"):
            relabel.relabel({"paths": [path], "label": "L"}, [], None)


def test_file_labels_where_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert isinstance(lsm.file_label(str(tmp_path / "f")), str)
    with pytest.raises(FileNotFoundError):
        lsm.file_label(str(tmp_path / "none"))


@pytest.mark.parametrize(("has", "wanted"), [(True, True), (True, False), (False, True), (False, False)])
def test_labels_where_the_host_has_them_and_they_are_wanted(has: bool, wanted: bool) -> None:
    node = SimpleNamespace(
        host=SimpleNamespace(has_selinux=has),
        config=SimpleNamespace(containers=SimpleNamespace(enable_selinux=wanted)),
        sandboxes={},
    )
    both = has and wanted
    assert pods_selinux.enabled(cast("Any", node)) == both
    assert bool(pods_selinux.level_for(cast("Any", node), cri.PodSandboxConfig())) == both
