"""imagesvc/store/layers.py"""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from imagesvc.store.layers import LayerStore
from imagesvc.transfer.unpacking import layer_error
from imagesvc.worker.pool import JobFailed
from proto.errors import Code, CrispError

DIGEST = f"sha256:{'0' * 64}"
RESULT = {"depends": False, "unsettled": False, "skeleton": False, "bytes": 1, "inodes": 1, "inflated": 1}
CALLS = ("stat", "unlink")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("number", "code"), [(errno.EIO, Code.INTERNAL), (errno.ENOSPC, Code.RESOURCE_EXHAUSTED)])
def test_a_disk_that_fails_while_a_layer_is_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: Code
) -> None:
    """What the disk says is not a defect of crisp's, and names the directory."""
    with ThreadPoolExecutor(1) as executor:
        (tmp_path / "layers").mkdir()
        store = LayerStore(str(tmp_path), executor, cast("Any", None))
        directory = store.new_directory()
        for name in ("skeleton", "whiteouts"):
            Path(directory, name).write_bytes(b"")

        def fail(path: str, **_: object) -> None:
            raise OSError(number, os.strerror(number), path)

        with monkeypatch.context() as patched, pytest.raises(CrispError) as caught:
            patched.setattr(f"imagesvc.store.layers.os.{call}", fail)
            store.stage(directory, RESULT, DIGEST, DIGEST)
    assert caught.value.code is code
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize(("path", "what"), [("/etc/big", "etc/big of layer"), ("/", "layer"), ("", "layer")])
def test_a_path_inside_a_layer_is_not_told_as_the_hosts(path: str, what: str) -> None:
    failure = JobFailed({"error": "os", "errno": errno.EIO, "message": "Input/output error", "path": path})
    error = layer_error(failure, DIGEST, "/var/lib/crisp/layers")
    assert error.message == f"unpacking {what} {DIGEST}: Input/output error: /var/lib/crisp/layers"
