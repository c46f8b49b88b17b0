"""Tests that documents name as `tests/PATH::NAME`: which those are, and whether they exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"`([a-z0-9_/]+\.py)::([a-z0-9_]+)`")
"""Without the leading `tests/`."""


@functools.cache
def defined(path: str) -> frozenset[str]:
    """Test functions of a file below tests/."""
    file = ROOT / "tests" / path
    if not file.exists():
        return frozenset()
    functions = (
        node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return frozenset(node.name for node in functions)


def missing(text: str) -> list[str]:
    """Tests that a text names and that do not exist."""
    return [f"{path}::{name}" for path, name in NAMED.findall(text) if name not in defined(path)]
