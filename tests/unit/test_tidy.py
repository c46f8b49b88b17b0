"""The tree is tidy: imports point one way, modules are small, `__init__.py` files are empty, names say what they are."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("proto", "kernel", "shim", "imagesvc", "runtime")
"""In the order of imports: a room may import those to its left."""
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 70
GENERATED = ("_pb2.py", "_pb2_grpc.py")
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def modules() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if not path.name.endswith(GENERATED)]


def imported(tree: ast.AST) -> set[str]:
    """Top-level packages that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_module(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    source = path.read_text()
    tree = ast.parse(source)
    if path.name == "__init__.py":
        assert source == ""
        return
    assert path.stem not in VAGUE
    later = set(ROOMS[ROOMS.index(room) + 1 :])
    assert not imported(tree) & later, "imports point one way: proto, kernel, shim, imagesvc, runtime"
    assert source.count("\n") <= MAX_MODULE_LINES
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("room", ["kernel", "shim"])
def test_lean_rooms_have_no_dependencies(room: str) -> None:
    allowed = {"proto", "kernel", "shim"}
    banned = {"grpc", "google", "structlog", "pyroute2", "asyncio", "aiohttp", "click", "rich"}
    for path in sorted((ROOT / room).glob("*.py")):
        names = imported(ast.parse(path.read_text()))
        assert not names & banned, path
        assert not names & ({*ROOMS} - allowed), path


def test_only_kernel_uses_ctypes() -> None:
    users = {p.relative_to(ROOT).parts[0] for p in modules() if "ctypes" in imported(ast.parse(p.read_text()))}
    assert users <= {"kernel"}


def test_repository_holds_no_build_products() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    assert not [name for name in listed if name.endswith((".pyc", ".whl", ".so", ".deb")) or "__pycache__" in name]
