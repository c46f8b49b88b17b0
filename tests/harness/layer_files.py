"""Whether layers can be files where a test has its directories."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from imagesvc.erofs import sample
from shim import layer_probe


@functools.cache
def why_not(directory: Path) -> str:
    """Why they cannot, or "": the kernel may lack it, or the file system of temporary files."""
    return layer_probe.probe(str(directory), sample.image(layer_probe.NAME, layer_probe.TEXT))


def need(directory: Path) -> None:
    """Skips the test where they cannot."""
    if why := why_not(directory):
        pytest.skip(f"layers cannot be files here: {why}")
