"""shim/runtime_probe.py: what it says when a trial fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shim import oci_runtime, runtime_probe

KERNEL = "a user namespace cannot be made: No space left on device"


@pytest.fixture
def trial(tmp_path: Path) -> runtime_probe.Trial:
    """Below a directory through which only its owner gets."""
    tmp_path.chmod(0o700)
    runtime = oci_runtime.from_args({"name": "crun", "path": "/usr/bin/crun", "root": "/run/crun"})
    return runtime_probe.Trial(runtime, str(tmp_path / "probe"), "/probe")


def test_a_kernel_that_refuses_is_not_blamed_on_a_directory(
    trial: runtime_probe.Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Any:
        raise OSError(KERNEL)

    monkeypatch.setattr(runtime_probe, "_pod", refuse)
    assert trial.user_namespaces() == KERNEL


def test_a_closed_directory_is_named(trial: runtime_probe.Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def pod() -> Iterator[int]:
        yield 1

    monkeypatch.setattr(runtime_probe, "_pod", pod)
    monkeypatch.setattr(trial, "run", lambda *_: "Permission denied")
    assert f"{tmp_path} lets only its owner through (mode 0700)" in trial.user_namespaces()
