"""Two configurations put together: of the checkpointed container, and of the request."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import Code, CrispError
from runtime.oci import restored_spec

NEW: dict[str, Any] = {
    "process": {
        "args": ["new"],
        "env": ["PATH=/bin", "HOSTNAME=new"],
        "cwd": "/",
        "capabilities": {"bounding": ["CAP_CHOWN"]},
        "noNewPrivileges": False,
        "oomScoreAdj": 5,
    },
    "root": {"path": "rootfs", "readonly": False},
    "mounts": [
        {"destination": "/proc", "type": "proc"},
        {"destination": "/etc/hosts", "source": "/run/new/hosts", "options": ["bind"]},
        {"destination": "/data/", "source": "/new/data", "options": ["rbind"]},
    ],
    "linux": {
        "namespaces": [{"type": "network", "path": "/new"}, {"type": "pid"}, {"type": "mount"}],
        "cgroupsPath": "/new",
        "maskedPaths": ["/proc/kcore"],
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
    },
}
OLD: dict[str, Any] = {
    "process": {"args": ["old"], "env": ["PATH=/bin", "HOSTNAME=old", "A=b"], "cwd": "/tmp", "terminal": False},
    "root": {"path": "elsewhere"},
    "mounts": [{"destination": "/proc"}, {"destination": "/data", "source": "/old/data", "options": ["rbind", "rprivate"]}],
    "linux": {
        "namespaces": [{"type": "network", "path": "/old"}, {"type": "pid"}, {"type": "ipc", "path": "/old"}],
        "cgroupsPath": "/old",
        "maskedPaths": ["/proc/kcore", "/proc/keys"],
        "readonlyPaths": ["/proc/sys"],
        "seccomp": {},
    },
}


def changed(spec: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    spec = copy.deepcopy(spec)
    *path, last = place.split(".")
    inner = spec
    for key in path:
        inner = inner[key]
    inner[last] = value
    return spec


def merge(new: dict[str, Any] = NEW, old: dict[str, Any] = OLD, clients: tuple[str, ...] = ("/data",)) -> dict[str, Any]:
    return restored_spec.merge(new, restored_spec.parse(old), clients)


def test_the_process_is_the_old_one_and_all_else_is_new() -> None:
    merged = merge()
    assert merged["process"] == NEW["process"] | {
        "args": ["old"],
        "env": ["PATH=/bin", "HOSTNAME=old", "A=b"],
        "cwd": "/tmp",
        "terminal": False,
    }
    assert merged["root"] == NEW["root"]
    assert merged["linux"] == NEW["linux"] | {
        "maskedPaths": ["/proc/kcore", "/proc/keys"],
        "readonlyPaths": ["/proc/sys"],
    }
    assert [mount["destination"] for mount in merged["mounts"]] == ["/proc", "/data/"], "/etc/hosts was not mounted before"


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        (NEW, changed(OLD, "process.terminal", True), "a terminal"),
        (NEW, changed(OLD, "mounts", [*OLD["mounts"], {"destination": "/b"}, {"destination": "/a"}]), "mounts at /a, /b"),
        (NEW, changed(OLD, "mounts", OLD["mounts"][:1]), "no mounts at /data"),
        (changed(NEW, "root.readonly", True), OLD, "root file system is read-only"),
        (NEW, changed(OLD, "mounts", [{"destination": "/data", "options": ["rro"]}]), "/data is read-only in one"),
        (changed(NEW, "process.noNewPrivileges", True), OLD, "may gain privileges"),
        (NEW, changed(OLD, "process.capabilities", {"ambient": ["CAP_SYS_ADMIN"]}), "have CAP_SYS_ADMIN"),
        (NEW, changed(OLD, "linux.seccomp", None), "no seccomp filter"),
        (changed(NEW, "process.apparmorProfile", "x"), OLD, "AppArmor profile was none, and is to be x"),
        (NEW, changed(OLD, "process.selinuxLabel", "y"), "SELinux label was y, and is to be none"),
        (changed(NEW, "linux.maskedPaths", ["/proc/acpi"]), OLD, "masks fewer paths: /proc/acpi"),
        (changed(NEW, "linux.readonlyPaths", ["/proc/bus"]), OLD, "protects fewer paths: /proc/bus"),
        (changed(NEW, "linux.namespaces", [{"type": "pid"}]), OLD, "network namespace was shared, and is to be the node's"),
        (NEW, changed(OLD, "linux.namespaces", [{"type": "network", "path": "/x"}, {"type": "user"}]), "user namespace"),
    ],
)
def test_what_does_not_fit(new: dict[str, Any], old: dict[str, Any], reason: str) -> None:
    with pytest.raises(CrispError) as caught:
        merge(new, old)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert reason in caught.value.message


def test_all_that_does_not_fit_is_told_at_once() -> None:
    old = changed(changed(OLD, "process.terminal", True), "linux.seccomp", None)
    with pytest.raises(CrispError, match=r"no seccomp filter.*a terminal"):
        merge(old=old)


def test_differences_are_names() -> None:
    parsed = restored_spec.parse(OLD)
    assert restored_spec.differences(NEW, parsed) == ["args", "cwd"]
    asked = changed(NEW, "process.env", ["A=secret", "B=secret", "HOSTNAME=other"])
    assert restored_spec.differences(asked, parsed) == ["args", "cwd", "variable A", "variable B"]
    same = changed(changed(NEW, "process.args", ["old"]), "process.cwd", "/tmp")
    assert restored_spec.differences(same, parsed) == []


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
PLACES = ("process", "mounts", "linux", "root", "process.args", "process.env", "process.user", "process.capabilities")


@given(st.sampled_from((*PLACES, "linux.namespaces", "linux.maskedPaths", "linux.seccomp", "root.readonly")), json)
def test_any_document_is_merged_or_refused(place: str, value: Any) -> None:
    try:
        merge(old=changed(OLD, place, value))
    except CrispError as error:
        assert error.code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
