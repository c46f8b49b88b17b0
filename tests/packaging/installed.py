"""Versions of crisp as they are installed: a wheel that is built of a tree and put into a directory of its own."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path


def build_wheel(tree: Path, dist: Path) -> Path:
    """The wheel of a tree."""
    hatchling = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(dist)]
    subprocess.run(hatchling, cwd=tree, check=True, capture_output=True)
    [wheel] = dist.glob("*.whl")
    return wheel


def install(wheel: Path, place: Path) -> list[str]:
    """Install it for a Python that has the libraries already; how to run it. A pure wheel is installed by unpacking it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    # Not by its entry point: that would find the checkout, which the tests' environment has on its path.
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(place)!r}); from crisp import main; main()"]
