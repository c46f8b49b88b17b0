"""The tree is tidy: imports point one way, modules are small, `__init__.py` files are empty, names say what they are."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from proto import api_pb2 as cri

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("proto", "kernel", "shim", "imagesvc", "runtime")
"""In the order of imports: a floor may import those to its left."""

ROOMS = {
    "imagesvc": (
        *("limits", "references", "media_types", "manifests", "platforms", "disk_errors", "uninterrupted", "containerfile"),
        *("registry", "config", "tar", "erofs", "worker", "store", "transfer", "build", "service"),
    ),
    "runtime": (
        *("limits", "deadlines", "joining", "pool", "undoing", "filters", "listing"),
        *("paths", "lifecycle", "records", "client"),
        *("network", "streaming", "config", "store", "shims", "host", "oci", "nri", "pods", "checkpoints", "statistics"),
        *("api", "telemetry", "recovery", "reload", "daemon", "uninstall", "build", "cli"),
    ),
}
"""Packages and modules of a floor, each of which may import those before it; docs/architecture.md draws them."""

MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 70
GENERATED = ("_pb2.py", "_pb2_grpc.py")
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def modules() -> list[Path]:
    return [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py")) if not path.name.endswith(GENERATED)]


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
    floor = path.relative_to(ROOT).parts[0]
    source = path.read_text()
    tree = ast.parse(source)
    if path.name == "__init__.py":
        assert source == ""
        return
    assert path.stem not in VAGUE
    later = set(FLOORS[FLOORS.index(floor) + 1 :])
    assert not imported(tree) & later, "imports point one way: proto, kernel, shim, imagesvc, runtime"
    assert source.count("\n") <= MAX_MODULE_LINES
    docstring = ast.get_docstring(tree)
    assert docstring, "a module says what it is for"
    assert "\n" not in docstring.partition("\n\n")[0], "and its first line says it all"
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level], "say it in full"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, node.name


def graph() -> dict[str, set[str]]:
    """Every module and the modules that it imports: at the top, in functions, and for types alone."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules() if path.stem != "__init__"}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found[name] |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        packages = {other.rpartition(".")[0] for other in names}
        assert not {other for other in found[name] if other in packages and other not in _prefixes(found[name])}, name
        found[name] &= names.keys()
    return found


def _prefixes(imported: set[str]) -> set[str]:
    """Packages of which something is named too: a package that is imported by itself would hide what is used of it."""
    return {other.rpartition(".")[0] for other in imported}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Not even for types: what is not acyclic cannot be read from one end."""
    left = graph()
    while leaves := {name for name, uses in left.items() if not uses & left.keys()}:
        left = {name: uses for name, uses in left.items() if name not in leaves}
    assert sorted(left) == [], "each of these is in a circle, or uses one"


@pytest.mark.parametrize("floor", sorted(ROOMS))
def test_rooms_import_in_their_order(floor: str) -> None:
    order = ROOMS[floor]
    used = graph()
    assert {name.split(".")[1] for name in used if name.startswith(f"{floor}.")} == {*order}, "a room lacks its place"
    backwards = [
        f"{name} imports {other}"
        for name, others in used.items()
        for other in others
        if name.startswith(f"{floor}.") and other.startswith(f"{floor}.")
        if order.index(other.split(".")[1]) > order.index(name.split(".")[1])
    ]
    assert backwards == []


def test_the_rooms_are_drawn() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    text = text[text.index("The two upper floors have rooms") : text.index("### Where is it decided?")]
    drawn = {(floor, room) for floor, rooms in ROOMS.items() for room in rooms if (ROOT / floor / room).is_dir()}
    assert [f"{floor}/{room}" for floor, room in sorted(drawn) if f"`{room}/`" not in text] == []
    words = set(re.findall(r"\w+", text))
    assert {room for rooms in ROOMS.values() for room in rooms} - words == set()


def test_where_each_call_is_decided_is_said() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    tables = text[text.index("### Where is it decided?") : text.index("\n## Rules")]
    services = cri.DESCRIPTOR.services_by_name.values()
    calls = {method.name for service in services for method in service.methods}
    assert calls - set(re.findall(r"\w+", tables)) == set()
    assert [path for path in re.findall(r"`(\w+/[\w/]+\.\w+)`", tables) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("room", ["kernel", "shim"])
def test_lean_rooms_have_no_dependencies(room: str) -> None:
    allowed = {"proto", "kernel", "shim"}
    banned = {"grpc", "google", "structlog", "pyroute2", "asyncio", "aiohttp", "click", "rich"}
    for path in sorted((ROOT / room).rglob("*.py")):
        names = imported(ast.parse(path.read_text()))
        assert not names & banned, path
        assert not names & ({*FLOORS} - allowed), path


def test_only_kernel_uses_ctypes() -> None:
    users = {p.relative_to(ROOT).parts[0] for p in modules() if "ctypes" in imported(ast.parse(p.read_text()))}
    assert users <= {"kernel"}


def test_repository_holds_no_build_products() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    assert not [name for name in listed if name.endswith((".pyc", ".whl", ".so", ".deb")) or "__pycache__" in name]
