"""kernel/kept_files.py"""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel import kept_files
from kernel.kept_files import KeptFiles


def test_reads_what_is_there_now(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"1")
    with KeptFiles() as files:
        assert files.read(str(file)) == b"1"
        file.write_bytes(b"22")
        assert files.read(str(file)) == b"22"
        assert len(files) == 1
        assert files.read(str(tmp_path / "missing")) == b""
        assert len(files) == 1
        files.close_unused(60)
        assert len(files) == 1
        files.close_unused(0)
        assert len(files) == 0
        assert files.read(str(file)) == b"22"
        files.close()


def test_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_files, "MOST_FILES", 2)
    with KeptFiles() as files:
        for number in range(5):
            (tmp_path / str(number)).write_text(str(number))
            assert files.read(str(tmp_path / str(number))) == str(number).encode()
        assert len(files) == 2
        files.close()
