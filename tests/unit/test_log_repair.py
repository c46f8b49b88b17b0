"""shim/log_repair.py"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim import log_repair
from shim.logs import LogFile

WHOLE = b"2026-01-02T03:04:05.000000006Z stdout F whole\n"


@pytest.mark.parametrize(
    ("torso", "left"),
    [
        (b"", b""),
        (b"2026-01-02T03:04:05.000000007Z stderr F hal", b"2026-01-02T03:04:05.000000007Z stderr F hal\n"),
        (b"2026-01-02T03:04:05.000000007Z stdout P hal\0\0\0", b"2026-01-02T03:04:05.000000007Z stdout P hal\n"),
        (b"2026-01-02T03:04:05.000000007Z std", b""),
        (b"2026", b""),
        (bytes(4096), b""),
    ],
)
@pytest.mark.parametrize("before", [b"", WHOLE, WHOLE * 3000])
def test_the_end_is_a_whole_line(tmp_path: Path, before: bytes, torso: bytes, left: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(before + torso)
    log_repair.complete(str(path))
    assert path.read_bytes() == before + left
    log_repair.complete(str(path))
    assert path.read_bytes() == before + left


def test_the_next_attempt_begins_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(WHOLE[:-3])
    log = LogFile(str(path))
    log.write(WHOLE)
    log.close()
    assert path.read_bytes() == WHOLE[:-3] + b"\n" + WHOLE


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path / "gone", tmp_path, Path("/dev/null")):
        log_repair.complete(str(path))
    assert not (tmp_path / "gone").exists()
