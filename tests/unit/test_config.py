"""crisp.toml: defaults, types, and errors that name the key and its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from proto.errors import Code, CrispError
from runtime.config import settings


def load(tmp_path: Path, text: str) -> settings.Config:
    path = tmp_path / "crisp.toml"
    path.write_text(text)
    return settings.load(path)


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == settings.Config()


def test_values(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """
        root = "/data/crisp"
        [log]
        level = "debug"
        [network]
        bridge = "br1"
        subnets = ["10.1.0.0/16"]
        [runtimes.kata]
        path = "/opt/kata"
        [images]
        pull_progress_timeout = 7
        """,
    )
    assert found.root == Path("/data/crisp")
    assert found.log.level == "debug"
    assert found.network.subnets == ("10.1.0.0/16",)
    assert found.runtimes["kata"].path == "/opt/kata"
    assert found.images.pull_progress_timeout == 7.0


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("\nrooot = '/x'\n", ":2: rooot", "unknown key"),
        ("[log]\nlevel='info'\ncolour = 1\n", ":3: log.colour", "unknown key"),
        ("[log]\nlevel = 3\n", ":2: log.level", "must be of type str, not int"),
        ("root = 'relative'\n", ":1: root", "absolute"),
        ("[containers]\nshm_size = true\n", ":2: containers.shm_size", "must be of type int"),
        ("log = 3\n", ":1: log", "must be a table"),
        ("log = { levle = 'x' }\n", ":1: log.levle", "unknown key"),
        ("[runtimes.a]\npth = 'x'\n", ":2: runtimes.a.pth", "unknown key"),
        ("[nope]\n", ":1: nope", "unknown key"),
        ("[network]\nsubnets = 'x'\n", ":2: network.subnets", "must be an array"),
        ("[network]\n\nbridge = 'a name that is much too long'\n", ":1: network", "bridge"),
        ("[containers]\nulimits = ['core']\n", ":1: containers", "NAME=SOFT"),
        ("= broken\n", "crisp.toml", "line 1"),
    ],
)
def test_errors_name_key_and_line(tmp_path: Path, text: str, where: str, what: str) -> None:
    with pytest.raises(CrispError) as caught:
        load(tmp_path, text)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert where in caught.value.message
    assert what in caught.value.message


def test_missing_file_is_an_error_if_it_was_named(tmp_path: Path) -> None:
    with pytest.raises(CrispError, match="No such file"):
        settings.load(tmp_path / "none.toml")
