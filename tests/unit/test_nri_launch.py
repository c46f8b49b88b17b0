"""Which programs of a directory are started as plugins."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.nri import launch


def program(directory: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(directory), name)
    with open(path, "wb") as file:
        file.write(b"#!/bin/sh\n")
    os.chmod(path, 0o755)


def test_names_are_those_that_a_plugin_may_register_with(tmp_path: Path) -> None:
    """They go into messages and metrics, which hold neither spaces nor what is not UTF-8."""
    for name in (b"10-good", b"11-a b", b"12-\xff", b"13-", b"14", b"x5-index"):
        program(tmp_path, name)
    (tmp_path / "16-not-executable").touch(mode=0o644)
    (tmp_path / "17-elsewhere").symlink_to("10-good")
    (tmp_path / "18-nowhere").symlink_to("missing")
    assert [(one.index, one.name) for one in launch.find(tmp_path, tmp_path)] == [("10", "good"), ("17", "elsewhere")]


def test_a_directory_that_cannot_be_read_has_no_plugins(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert launch.find(tmp_path / "loop", tmp_path) == []
    assert launch.find(tmp_path / "missing", tmp_path) == []


def test_a_configuration_is_handed_over_whole_or_not_at_all(tmp_path: Path) -> None:
    program(tmp_path, b"10-big")
    program(tmp_path, b"11-full")
    (tmp_path / "big.conf").write_bytes(b"x" * (launch.CONFIG_BYTES + 1))
    (tmp_path / "full.conf").write_bytes(b"x" * launch.CONFIG_BYTES)
    [found] = launch.find(tmp_path, tmp_path)
    assert (found.name, len(found.config)) == ("full", launch.CONFIG_BYTES)
