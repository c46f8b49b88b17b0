"""docs/operating.md explains what the code says: log lines, metrics, configuration keys."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.config.document import document

TOP = Path(__file__).resolve().parents[2]
GUIDE = (TOP / "docs" / "operating.md").read_text()


def messages() -> Iterator[str]:
    """Constant first arguments of the log calls that an operator gets to see at the default level."""
    for room in ("kernel", "shim", "imagesvc", "runtime"):
        for path in (TOP / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(
                        func=ast.Attribute(
                            value=ast.Name(id="log"), attr="info" | "warning" | "error" | "exception" | "critical"
                        ),
                        args=[ast.Constant(value=str(text)), *_],
                    ):
                        yield text


@pytest.mark.parametrize("message", sorted(set(messages())))
def test_every_log_line_is_explained(message: str) -> None:
    assert f"`{message}`" in GUIDE


def test_every_metric_is_explained() -> None:
    source = (TOP / "runtime" / "telemetry" / "prometheus.py").read_text()
    names = set(re.findall(r'"(crisp_[a-z_]+)"', source))
    assert len(names) > 10
    assert [name for name in names if f"`{name}" not in GUIDE] == []


def test_the_keys_of_the_migration_table_exist() -> None:
    known = set(_keys(tomllib.loads(re.sub(r"(?m)^# (?=\[|[a-z_]+ = )", "", document()))))
    section = GUIDE[GUIDE.index("| containerd `config.toml`") : GUIDE.index("**Beside them.**")]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")]
    mentioned = {key for row in rows[1:] for key in re.findall(r"`([a-z]+\.[a-z_]+(?:\.[a-z_]+)?)`", row[3])}
    assert len(mentioned) > 5
    assert mentioned <= known


def _keys(document: dict[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in document.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
