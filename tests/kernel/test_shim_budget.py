"""The shim's budget: which modules it holds, and how much memory is its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.conftest import ShimLab
from tests.kernel.test_shim import execute, shim_pid

ROOT = Path(__file__).resolve().parents[2]

MAX_PRIVATE = 2368  # KiB of a running container's shim, after an exec; CPython 3.11 measured 2240

ROOMS = {"proto", "kernel", "shim"}
LIBRARY = {
    *("abc", "builtins", "codecs", "collections", "contextlib", "copyreg", "ctypes", "encodings", "enum", "errno", "fcntl"),
    *("functools", "gc", "genericpath", "heapq", "importlib", "io", "itertools", "json", "keyword", "marshal", "math"),
    *("operator", "os", "posix", "posixpath", "re", "reprlib", "select", "selectors", "signal", "socket", "stat", "struct"),
    *("sys", "termios", "time", "types", "typing", "warnings", "zipimport", "array", "atexit", "collections"),
}


def test_modules() -> None:
    script = "import shim.supervisor, shim.forkserver, sys; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    options = ["-S", "-P", "-c", script]
    done = subprocess.run([sys.executable, *options], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    public = {name for name in done.stdout.split() if not name.startswith("_")}
    assert public - ROOMS - LIBRARY == set()


@pytest.mark.root
async def test_memory(lab: ShimLab) -> None:
    bundle, shim = await lab.run("sleep", "1000")
    assert (await execute(lab, shim, "true"))[0] == 0
    rollup = Path(f"/proc/{shim_pid(bundle)}/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith(("Private_Clean", "Private_Dirty")))
    assert private <= MAX_PRIVATE


@pytest.mark.root
async def test_late_imports_would_be_heard(lab: ShimLab) -> None:
    """The lab asserts of every shim that there are none: its program may be another version by then."""
    assert "colorsys" in (await lab.server.run_job("tests.harness.import_witness:late", {}))["heard"]
