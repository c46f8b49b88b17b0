"""Whether CRIU is here, and its reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from proto.errors import Code, CrispError
from runtime.pods import criu

LOG = """\
(00.000055) Version: 3.17.1 (gitid 0)
(00.045031) Error (criu/sk-inet.c:201): inet: Connected TCP socket, consider using --tcp-established option.
(00.045036) Error (criu/sk-inet.c:201): inet: Connected TCP socket, consider using --tcp-established option.
(00.045078) Error (criu/cr-dump.c:1548): Dump files (pid: 1143) failed with -1
(00.045100) Warn  (criu/x.c:1): nothing
(00.051216) Error (criu/cr-dump.c:2098): Dumping FAILED.
(00.051217) Error (criu/cr-dump.c:2099): and more
"""


def test_a_node_without_criu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CrispError, match="no CRIU") as caught:
        criu.require()
    assert caught.value.code is Code.FAILED_PRECONDITION
    (tmp_path / "criu").touch(mode=0o755)
    criu.require()


def test_the_first_errors_each_once(tmp_path: Path) -> None:
    (tmp_path / "dump.log").write_text(LOG)
    assert criu.reason(tmp_path / "dump.log", "unsaid") == (
        "(criu/sk-inet.c:201): inet: Connected TCP socket, consider using --tcp-established option.; "
        "(criu/cr-dump.c:1548): Dump files (pid: 1143) failed with -1; (criu/cr-dump.c:2098): Dumping FAILED."
    )


def test_criu_that_never_ran(tmp_path: Path) -> None:
    assert criu.reason(tmp_path / "dump.log", "unsaid") == "unsaid"


def test_a_log_without_errors(tmp_path: Path) -> None:
    (tmp_path / "dump.log").write_bytes(b"all is well \xff")
    assert criu.reason(tmp_path / "dump.log", "unsaid") == ""
