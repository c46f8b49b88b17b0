"""What `crisp cp` and `crisp build` open in a container or image is what it has looked at, or nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runtime.build import shut_in


def test_a_file_that_has_become_something_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with shut_in.open_regular(str(tmp_path / "file")) as file:
        assert file.read() == b"text"
    os.mkfifo(tmp_path / "fifo")  # nobody writes to it: who opens it as usual waits
    with pytest.raises(OSError, match="no file any more") as caught:
        shut_in.open_regular(str(tmp_path / "fifo"), "rb")
    assert caught.value.errno == errno.EINVAL
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic links") as caught:
        shut_in.open_regular(str(tmp_path / "link"), "rb")
    assert caught.value.errno == errno.ELOOP
