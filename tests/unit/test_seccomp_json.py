"""seccomp profiles in JSON: the words of docker, Podman and CRI-O, and what is no profile."""

from __future__ import annotations

import errno
import json
import platform
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import Code, CrispError
from runtime.oci import seccomp, seccomp_json

HERE = seccomp_json.GO_ARCHITECTURES.get(platform.machine(), platform.machine())


def profile(capabilities: frozenset[str] = frozenset(), **fields: Any) -> dict[str, Any]:
    return seccomp_json.profile({"defaultAction": "SCMP_ACT_ERRNO", **fields}, "p.json", capabilities)


def allowed(capabilities: frozenset[str] = frozenset(), **rule: Any) -> bool:
    found = profile(capabilities, syscalls=[{"names": ["read"], "action": "SCMP_ACT_ALLOW", **rule}])
    return bool(found["syscalls"])


def test_what_nobody_reads_is_left_out() -> None:
    rule = {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {}, "excludes": None}
    assert profile(comment="ours", defaultErrno="ENOSYS", defaultErrnoRet=1, syscalls=[rule]) == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
    }


def test_the_single_name_of_old() -> None:
    found = profile(syscalls=[{"name": "read", "action": "SCMP_ACT_ALLOW"}])
    assert found["syscalls"] == [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]


def test_an_empty_list_is_of_no_call() -> None:
    """OCI runtimes take it too."""
    assert profile(syscalls=[{"names": [], "action": "SCMP_ACT_ALLOW"}])["syscalls"] == []


def test_errors_and_arguments() -> None:
    argument = {"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}
    rule = {"names": ["bdflush"], "action": "SCMP_ACT_ERRNO", "errno": "EPERM", "errnoRet": 38, "args": [argument]}
    assert profile(syscalls=[rule])["syscalls"] == [
        {"names": ["bdflush"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM, "args": [argument]}
    ]


def test_architectures_of_a_map() -> None:
    native = seccomp_json.NATIVE[platform.machine()]
    listed = [
        {"architecture": "SCMP_ARCH_MIPS", "subArchitectures": ["SCMP_ARCH_MIPS64"]},
        {"architecture": native, "subArchitectures": ["SCMP_ARCH_X86"]},
    ]
    assert profile(archMap=listed)["architectures"] == [native, "SCMP_ARCH_X86"]
    assert profile(archMap=listed, architectures=["SCMP_ARCH_ARM"])["architectures"] == ["SCMP_ARCH_ARM"]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, True),
        ({"includes": {"caps": ["CAP_BPF"]}}, True),
        ({"includes": {"caps": ["CAP_SYS_BOOT"]}}, False),
        ({"includes": {"arches": [HERE, "mips"]}}, True),
        ({"includes": {"arches": ["mips"]}}, False),
        ({"includes": {"minKernel": "3.0"}}, True),
        ({"includes": {"minKernel": "999.0"}}, False),
        ({"excludes": {"caps": ["CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_SYS_BOOT"]}}, True),
        ({"excludes": {"arches": [HERE]}}, False),
        ({"excludes": {"minKernel": "3.0"}}, False),
        ({"excludes": {"minKernel": "999.0"}}, True),
        ({"includes": {"caps": ["CAP_BPF"]}, "excludes": {"arches": [HERE]}}, False),
    ],
)
def test_conditions(conditions: dict[str, Any], expected: bool) -> None:
    assert allowed(frozenset({"CAP_BPF"}), **conditions) is expected


@pytest.mark.parametrize(
    "fields",
    [
        {"defaultAction": "ALLOW"},
        {"defaultErrno": "PERM"},
        {"defaultErrno": "errorcode"},
        {"defaultErrnoRet": -1},
        {"architectures": "SCMP_ARCH_X86"},
        {"flags": [1]},
        {"syscalls": {}},
        {"syscalls": [1]},
        {"syscalls": [{"action": "SCMP_ACT_ALLOW"}]},
        {"syscalls": [{"names": ["read"], "action": 7}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"op": "=="}]}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"value": 2**64, "op": "SCMP_CMP_EQ"}]}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}]},
        {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": "CAP_BPF"}}]},
    ],
)
def test_what_is_wrong_is_said_with_its_place(fields: dict[str, Any]) -> None:
    with pytest.raises(CrispError, match=r"p\.json") as refused:
        profile(**fields)
    assert refused.value.code is Code.INVALID_ARGUMENT


words = st.sampled_from(
    ["defaultAction", "SCMP_ACT_ALLOW", "syscalls", "names", "name", "action", "args", "includes", "caps"]
)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=5), inner, max_size=4),
)


@given(documents)
def test_any_document_is_a_profile_or_an_error(document: Any) -> None:
    try:
        seccomp_json.profile(document, "p.json", frozenset({"CAP_BPF"}))
    except CrispError as error:
        assert error.code is Code.INVALID_ARGUMENT


def test_as_runtime_default(tmp_path: Path) -> None:
    path = tmp_path / "seccomp.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}))
    seccomp.check(str(path))
    assert seccomp.runtime_default(frozenset(), path)["defaultAction"] == "SCMP_ACT_ALLOW"
    seccomp.check("")
    for content in ("{", "{}", "errno = 1", "no = toml = at all", "\xff"):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(CrispError, match=r"seccomp\.json"):
            seccomp.check(str(path))
    with pytest.raises(CrispError, match="No such file"):
        seccomp.check(str(tmp_path / "none"))
