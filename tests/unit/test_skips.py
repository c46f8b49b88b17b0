"""Every reason for which a test skips stands in docs/conformance.md, and nothing that is no reason any more."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIPS = {"skip", "skipif"}


def reasons() -> set[str]:
    """As they stand in the tests, with `…` for what is filled in."""
    found = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SKIPS:
                named = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
                found |= {text for value in named or node.args[:1] if (text := _text(value))}
    return found


def _text(value: ast.expr) -> str:
    if isinstance(value, ast.JoinedStr):
        return "".join(_text(part) or "…" for part in value.values)
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def test_what_skips_and_why_is_one_table() -> None:
    text = (ROOT / "docs" / "conformance.md").read_text()
    table = text[text.index("## What skips, and why") :].split("\n## ", 1)[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:]
    told = {reason.strip("`") for row in rows for reason in row.split("`, `")}
    assert sorted(reasons() - told) == []
    assert sorted(told - reasons()) == []
