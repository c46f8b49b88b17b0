"""A handler's base specification: what is read, and what lies over what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proto.errors import CrispError
from runtime.oci import base_spec
from runtime.oci.ulimits import Ulimit


def load(tmp_path: Path, **content: Any) -> dict[str, Any]:
    path = tmp_path / "base.json"
    path.write_text(json.dumps({"ociVersion": "1.0.2"} | content))
    return base_spec.load(path)


def test_what_the_request_says_counts(tmp_path: Path) -> None:
    base = load(
        tmp_path,
        root={"path": "/"},
        process={"env": ["A=base", "B=base"], "cwd": "/base", "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]},
        annotations={"x": "base", "y": "base"},
        hooks={"prestart": [{"path": "/base"}]},
        linux={"resources": {"devices": [{"allow": True}], "cpu": {"shares": 2}}, "sysctl": {"net.x": "1"}},
    )
    assert load(tmp_path, mounts=[{"destination": "/x"}])["mounts"] == [{"destination": "/x", "options": []}]
    assert base_spec.rlimits(base) == {"core": Ulimit(0, 0)}
    merged = base_spec.lay_over(
        base,
        {
            "root": {"path": "rootfs"},
            "process": {"env": ["A=mine"], "cwd": "/mine", "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}]},
            "annotations": {"x": "mine"},
            "hooks": {"prestart": [{"path": "/mine"}]},
            "linux": {"resources": {"devices": [{"allow": False}, {"allow": 1}]}},
        },
    )
    assert merged == {
        "root": {"path": "rootfs"},
        "process": {
            "env": ["B=base", "A=mine"],
            "cwd": "/mine",
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}],
        },
        "annotations": {"x": "mine", "y": "base"},
        "hooks": {"prestart": [{"path": "/base"}, {"path": "/mine"}]},
        "linux": {
            "resources": {"devices": [{"allow": False}, {"allow": True}, {"allow": 1}], "cpu": {"shares": 2}},
            "sysctl": {"net.x": "1"},
        },
    }
    assert base["process"]["env"] == ["A=base", "B=base"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ociVersion": 1}, "ociVersion"),
        ({"windows": {}}, "unknown windows"),
        ({"process": []}, "process must be an object"),
        ({"mounts": {}}, "mounts must be an array"),
        ({"mounts": [{}]}, "destination"),
        ({"hooks": {"never": []}}, "never"),
        ({"process": {"rlimits": [{}]}}, "rlimits"),
        ({"process": {"rlimits": [{"type": "RLIMIT_CORE", "soft": "0", "hard": 0}]}}, "rlimits"),
    ],
)
def test_broken_files_say_what(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(CrispError, match=message):
        load(tmp_path, **content)
