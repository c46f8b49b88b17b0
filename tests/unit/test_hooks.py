"""OCI hooks directories: files, conditions, order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proto.errors import Code, CrispError
from runtime.oci import hooks


def document(when: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"version": "1.0.0", "hook": {"path": "/bin/hook"}, "when": when, "stages": ["prestart"]} | changes


@pytest.mark.parametrize(
    ("when", "matches"),
    [
        ({"always": True}, True),
        ({"always": False}, False),
        ({}, False),
        ({"annotations": {"^io\\.x$": "yes|1"}}, True),
        ({"annotations": {"^io\\.x$": "^no$"}}, False),
        ({"commands": ["/nginx$"]}, True),
        ({"commands": ["^apache"]}, False),
        ({"hasBindMounts": True}, True),
        ({"hasBindMounts": False}, False),
        ({"always": True, "commands": ["^apache"]}, False),
    ],
)
def test_conditions(when: dict[str, Any], matches: bool) -> None:
    file = hooks.parse(document(when), "/d/f.json")
    assert file.when.match({"io.x": "yes"}, "/usr/bin/nginx", bind_mounts=True) is matches


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (document({"always": True}, version="2.0.0"), "version '2.0.0' is neither"),
        ({"hook": "/h", "stages": ["prestart"], "cmds": ["("]}, "regular expression"),
        ({"hook": "h", "stages": ["prestart"], "cmds": ["x"]}, "not absolute"),
        ({"hook": "/h", "stages": ["never"]}, "stages"),
        ({"hook": "/h", "stage": [], "cmds": ["x"]}, "stage"),
        ({"hook": "/h", "stages": ["prestart"], "cdms": ["x"]}, "unknown cdms"),
        (document({"always": True}, stages=["never"]), "stages"),
        (document({"always": True}, stages=[]), "stages"),
        (document({"always": True}, hook={"path": "relative"}), "not absolute"),
        (document({"always": True}, hook={"path": "/x", "timeout": 0}), "positive"),
        (document({"commands": ["("]}), "regular expression"),
        (document({"commands": ["a{99999999999999}"]}), "regular expression"),
        (document({"annotations": {"(" * 6000 + ")" * 6000: "x"}}), "regular expression"),
        ({"hook": "/h", "stages": ["prestart"], "cmds": ["(" * 6000 + ")" * 6000]}, "regular expression"),
        (document({"alwys": True}), "unknown alwys"),
        ({"version": "1.0.0"}, "hook and when"),
    ],
)
def test_broken_files_say_where(broken: Any, message: str) -> None:
    with pytest.raises(CrispError, match=message):
        hooks.parse(broken, "/d/f.json")


@pytest.mark.parametrize(
    ("conditions", "matches"),
    [
        ({"cmds": ["/nginx$"]}, True),
        ({"cmd": ["/nginx$"]}, True),
        ({"cmds": ["^apache"]}, False),
        ({"cmds": ["^apache"], "hasbindmounts": True}, True),
        ({"annotations": ["^yes$"]}, True),
        ({"annotation": ["^no$"]}, False),
        ({"hasbindmount": False}, False),
        ({}, False),
    ],
)
def test_old_files_need_one_condition_that_holds(conditions: dict[str, Any], matches: bool) -> None:
    """oci-hooks(5), version 0.1.0: the files that carry no version."""
    for version in ({}, {"version": "0.1.0"}):
        old = {"hook": "/bin/hook", "arguments": ["a"], "stages": ["prestart", "poststop"], **conditions, **version}
        file = hooks.parse(old, "/d/f.json")
        assert (file.hook, file.stages) == ({"path": "/bin/hook", "args": ["/bin/hook", "a"]}, ("prestart", "poststop"))
        assert file.when.match({"io.x": "yes"}, "/usr/bin/nginx", bind_mounts=True) is matches


def test_order_and_overriding(tmp_path: Path) -> None:
    for directory, name, path in (("a", "20.json", "/a20"), ("a", "10.json", "/a10"), ("b", "20.json", "/b20")):
        (tmp_path / directory).mkdir(exist_ok=True)
        (tmp_path / directory / name).write_text(
            json.dumps(document({"always": True}, hook={"path": path, "args": ["h", "x"], "timeout": 5}))
        )
    files = hooks.load([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])
    spec: dict[str, Any] = {"process": {"args": ["/bin/sh"]}, "hooks": {"prestart": [{"path": "/first"}]}}
    hooks.apply(spec, files, {}, bind_mounts=False)
    assert [hook["path"] for hook in spec["hooks"]["prestart"]] == ["/first", "/a10", "/b20"]
    assert spec["hooks"]["prestart"][1] == {"path": "/a10", "args": ["h", "x"], "timeout": 5}
    (tmp_path / "b" / "30.json").write_text("{")
    with pytest.raises(CrispError, match=r"OCI hooks of this node: .*30\.json is not JSON") as refused:
        hooks.load([tmp_path / "b"])
    assert refused.value.code is Code.FAILED_PRECONDITION
