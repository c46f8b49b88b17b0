"""The packages, built once for all tests of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.daemon import ROOT


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with wheel, source distribution and Debian package, as `make packages` makes them."""
    dist = tmp_path_factory.mktemp("packages") / "dist"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    # In the namespace that pytest was started in: the tests' own has no way to a package index.
    outside = ["nsenter", f"--net=/proc/{os.getppid()}/ns/net"] if os.geteuid() == 0 else []
    command = [*outside, "make", "packages", f"DIST={dist}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return dist
