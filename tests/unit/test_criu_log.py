"""CRIU's reasons."""

from __future__ import annotations

from pathlib import Path

from runtime import criu_log

LOG = """\
(00.000055) Version: 3.17.1 (gitid 0)
(00.045031) Error (criu/sk-inet.c:201): inet: Connected TCP socket, consider using --tcp-established option.
(00.045036) Error (criu/sk-inet.c:201): inet: Connected TCP socket, consider using --tcp-established option.
(00.045078) Error (criu/cr-dump.c:1548): Dump files (pid: 1143) failed with -1
(00.045100) Warn  (criu/x.c:1): nothing
(00.051216) Error (criu/cr-dump.c:2098): Dumping FAILED.
(00.051217) Error (criu/cr-dump.c:2099): and more
"""


def test_the_first_errors_each_once(tmp_path: Path) -> None:
    (tmp_path / "dump.log").write_text(LOG)
    assert criu_log.reason(tmp_path / "dump.log", "unsaid") == (
        "(criu/sk-inet.c:201): inet: Connected TCP socket, consider using --tcp-established option.; "
        "(criu/cr-dump.c:1548): Dump files (pid: 1143) failed with -1; (criu/cr-dump.c:2098): Dumping FAILED."
    )


def test_criu_that_never_ran(tmp_path: Path) -> None:
    assert criu_log.reason(tmp_path / "dump.log", "unsaid") == "unsaid"


def test_a_log_without_errors(tmp_path: Path) -> None:
    (tmp_path / "dump.log").write_bytes(b"all is well \xff")
    assert criu_log.reason(tmp_path / "dump.log", "unsaid") == ""
