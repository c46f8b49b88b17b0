"""Where the product's code can be made wrong by one small change, and what it then reads."""

from __future__ import annotations

import ast
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FLOORS = ("kernel", "shim", "imagesvc", "runtime", "proto")
GENERATED = ("_pb2.py", "_pb2_grpc.py")
COMPARISONS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
ERRORS = {"invalid": "failed_precondition", "failed_precondition": "not_found", "not_found": "invalid"}
CODES = ("INVALID_ARGUMENT", "INTERNAL")
TELLING = ("log", "_log", "logger", "telemetry")
"""What is called to tell somebody of something: without it the log is shorter, which is no fault of the kind looked for."""


@dataclass(frozen=True)
class Place:
    """One change: the text from `start` to `end` (lines from 1, columns in bytes) becomes `text`."""

    file: str
    function: str
    kind: str
    start: tuple[int, int]
    end: tuple[int, int]
    text: str
    number: int = 0
    """Among the places of the same kind in this function."""

    def __str__(self) -> str:
        return f"{self.file}:{self.start[0]} {self.function} ({self.kind})"

    def key(self, seed: int) -> bytes:
        """Its place in the order of a seed: it stays the same while others' code changes."""
        name = f"{seed} {self.file} {self.function} {self.kind} {self.number}"
        return hashlib.sha256(name.encode()).digest()

    def apply(self, source: str) -> str:
        """The module's text with the change."""
        data = source.encode()
        lines = data.splitlines(keepends=True)

        def offset(position: tuple[int, int]) -> int:
            return sum(map(len, lines[: position[0] - 1])) + position[1]

        return (data[: offset(self.start)] + self.text.encode() + data[offset(self.end) :]).decode()

    def line(self, source: str) -> str:
        """The line as it was, for people."""
        return source.splitlines()[self.start[0] - 1].strip()


def chosen(root: Path, seed: int, count: int) -> list[Place]:
    """`count` places of a seed, of all kinds alike."""
    kinds: dict[str, list[Place]] = defaultdict(list)
    for place in everywhere(root):
        kinds[place.kind].append(place)
    for places in kinds.values():
        places.sort(key=lambda place: place.key(seed))
    found: list[Place] = []
    while len(found) < count and any(kinds.values()):
        found += [kinds[kind].pop(0) for kind in sorted(kinds) if kinds[kind]]
    return found[:count]


def everywhere(root: Path) -> Iterator[Place]:
    """All places of the product."""
    for floor in FLOORS:
        for path in sorted((root / floor).rglob("*.py")):
            if not path.name.endswith(GENERATED) and path != root / "proto/generate.py":
                source = path.read_text()
                yield from _Finder(str(path.relative_to(root)), source).found


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, source: str) -> None:
        self._file = file
        self._lines = source.encode().splitlines(keepends=True)
        self._function: list[str] = []
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self.found: list[Place] = []
        self.visit(ast.parse(source))

    def _text(self, node: ast.AST) -> str:
        start, end = _span(node)
        if start[0] == end[0]:
            return self._lines[start[0] - 1][start[1] : end[1]].decode()
        middle = self._lines[start[0] : end[0] - 1]
        return b"".join([self._lines[start[0] - 1][start[1] :], *middle, self._lines[end[0] - 1][: end[1]]]).decode()

    def _add(self, kind: str, node: ast.AST, text: str) -> None:
        function = ".".join(self._function) or "<module>"
        start, end = _span(node)
        self.found.append(Place(self._file, function, kind, start, end, text, self._counts[function, kind]))
        self._counts[function, kind] += 1

    def _inside(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._function.append(node.name)
        for child in node.body:
            self.visit(child)
        self._function.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if isinstance(default, ast.Constant):
                self._constant("default", default)
        self._inside(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.value, ast.Constant):
            self._constant("default" if self._function else "constant", node.value)
        elif node.value is not None:
            self.visit(node.value)

    def visit_Assert(self, node: ast.Assert) -> None:
        """What must hold anyway."""

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._add("condition", node.test, f"(not ({self._text(node.test)}))")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if not isinstance(node.operand, ast.Constant):  # -1 says "none", and any other would do
            self.visit(node.operand)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._add("condition", node.test, f"(not ({self._text(node.test)}))")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._add("condition", node.test, f"(not ({self._text(node.test)}))")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._add("condition", test, f"(not ({self._text(test)}))")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        parts = [f"({self._text(value)})" for value in node.values]
        self._add("and-or", node, f"({' or '.join(parts)})" if isinstance(node.op, ast.And) else f"({' and '.join(parts)})")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1:
            left, right = self._text(node.left), self._text(node.comparators[0])
            self._add("comparison", node, f"(({left}) {COMPARISONS[type(node.ops[0])]} ({right}))")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add("raise", node, "pass")
        if node.exc is not None:
            self.visit(node.exc)

    def visit_Return(self, node: ast.Return) -> None:
        value = node.value
        if value is None:
            self._add("return", node, "pass")
        elif isinstance(value, ast.Constant) and isinstance(value.value, bool):
            self._add("return", value, str(not value.value))
        elif not (isinstance(value, ast.Constant) and value.value is None):
            self._add("return", value, "None")
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.type is not None:
            self._add("except", node.type, "()")
        for child in node.body:
            self.visit(child)

    def visit_Expr(self, node: ast.Expr) -> None:
        call = node.value.value if isinstance(node.value, ast.Await) else node.value
        if not isinstance(call, ast.Call):
            return
        name = call.func
        while isinstance(name, ast.Attribute):
            name = name.value
        if not (isinstance(name, ast.Name) and name.id in TELLING):
            self._add("call", node, "pass")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ERRORS:
            self._add("error", node.func, ERRORS[node.func.id])
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id == "Code" and node.attr.isupper():
            self._add("error", node, f"Code.{CODES[node.attr == CODES[0]]}")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        self._constant("constant", node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Messages."""

    def _constant(self, kind: str, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(kind, node, str(not node.value))
        elif isinstance(node.value, int | float):
            self._add(kind, node, f"({self._text(node)} + 1)")


def _span(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    assert isinstance(node, ast.expr | ast.stmt)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
