"""pod.json of a pod's checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proto.errors import Code, CrispError
from runtime.checkpoints import pod_manifest
from runtime.checkpoints.pod_manifest import Manifest


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "0/checkpoint").mkdir(parents=True)
    (tmp_path / "0/config.dump").touch()
    manifest = Manifest("runc", ["one", "two"], shm=True)
    pod_manifest.write(tmp_path, manifest)
    assert pod_manifest.read(tmp_path) == manifest
    assert sorted(os.listdir(tmp_path)) == ["0", "pod.json"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", Code.INVALID_ARGUMENT),
        ("[]", Code.INVALID_ARGUMENT),
        ("[" * 100_000, Code.INVALID_ARGUMENT),
        (" " * (2 << 20), Code.INVALID_ARGUMENT),
        ('{"version": 1}', Code.INVALID_ARGUMENT),
        ('{"version": 1, "handler": "runc", "containers": "one"}', Code.INVALID_ARGUMENT),
        ('{"version": 1, "handler": "runc", "containers": ["one"], "more": 1}', Code.INVALID_ARGUMENT),
        ('{"version": 2}', Code.FAILED_PRECONDITION),
    ],
)
def test_others(tmp_path: Path, text: str, code: Code) -> None:
    (tmp_path / "pod.json").write_text(text)
    with pytest.raises(CrispError) as caught:
        pod_manifest.read(tmp_path)
    assert caught.value.code is code


def test_none(tmp_path: Path) -> None:
    for make in (lambda path: None, lambda path: path.symlink_to("/etc/passwd"), os.mkfifo):
        path = tmp_path / "pod.json"
        make(path)
        with pytest.raises(CrispError) as caught:
            pod_manifest.read(tmp_path)
        assert caught.value.code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT)
        path.unlink(missing_ok=True)
