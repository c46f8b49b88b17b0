"""What was measured, as a picture: the rows that a reader decides by, each as a bar of how many times better it is.

    .venv/bin/python -m tests.bench.plot docs/performance.md docs/performance.svg

draws the table of a Markdown file anew. A bar that reaches to the right of 1× is better than the first runtime, one to the
left is worse, whatever the row counts.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from tests.bench.report import Figures, parse

ROWS: Final = {
    "pod start, pod 1, ms": "start of a pod",
    "pod start, pod 300, ms": "start of the 300th pod",
    "teardown, pod 1, ms": "end of a pod",
    "pods/s, 8 at once": "pods per second, 8 at once",
    "ExecSync, pod 1, ms": "probe by ExecSync",
    "ListContainerStats of 500, ms": "statistics of 500 containers",
    "memory per pod, MiB": "memory of a further pod",
    "log, MB/s": "container log",
    "restart with 299 pods, ms": "restart with 299 pods",
    "pull of 1 GB, s": "pull of 1 GB",
}
"""By the names of the table."""

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 860, 220, 190, 74, 30, 18
BETTER, WORSE, INK, FAINT = "#2f7d5b", "#b5482f", "#222", "#d8d8d8"


class Bar(NamedTuple):
    """One row of the picture."""

    label: str
    times: float
    """How many times better than the reference: above 1 is better, in whatever direction the row counts."""
    value: float
    reference: float
    unit: str


def better_when_larger(key: str) -> bool:
    """Whether a row counts something per second, of which more is better; all others count time or memory."""
    return any(part.strip().endswith("/s") for part in key.split(","))


def unit_of(key: str) -> str:
    """The unit in a row's name."""
    return next((unit for unit in ("pods/s", "MB/s", "ms", "MiB") if unit in key.replace(",", "").split()), "s")


def bars(reference: Figures, measured: Figures) -> list[Bar]:
    """The bars for one runtime beside another, the longest first; rows that either has not are left out."""
    found = []
    for key, label in ROWS.items():
        before, now = reference.values.get(key), measured.values.get(key)
        if before and now:
            times = now / before if better_when_larger(key) else before / now
            found.append(Bar(label, times, now, before, unit_of(key)))
    return sorted(found, key=lambda bar: bar.times, reverse=True)


def plot(results: list[Figures], target: Path) -> None:
    """Draw the second of the results beside the first, as SVG."""
    target.write_text(svg(bars(results[0], results[1]), results[1].name, results[0].name), encoding="utf-8")


def svg(rows: list[Bar], name: str, reference: str) -> str:
    """The picture of some bars, with a logarithmic axis of powers of two."""
    exponents = [math.log2(bar.times) for bar in rows]
    low, high = math.floor(min([0.0, *exponents])), max(1, math.ceil(max([0.0, *exponents])))
    bottom = TOP + ROW * len(rows)
    height = bottom + 44

    def x(exponent: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (exponent - low) / (high - low), 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(20, 32, f"{name} beside {reference}: times better", size=20, weight="bold"),
    ]
    for exponent in range(low, high + 1):
        one = exponent == 0
        stroke, width = (INK, 2) if one else (FAINT, 1)
        at = x(exponent)
        lines.append(
            f'<line x1="{at}" y1="{TOP - 8}" x2="{at}" y2="{bottom + 4}" stroke="{stroke}" stroke-width="{width}"/>'
        )
        lines.append(_text(at, bottom + 22, f"{2.0**exponent:g}×", anchor="middle", weight="bold" if one else "normal"))
    lines.append(_text(x(0), bottom + 38, f"1× is {reference}", anchor="middle", size=11))
    for number, (bar, exponent) in enumerate(zip(rows, exponents, strict=True)):
        y = TOP + ROW * number + (ROW - BAR) / 2
        begin, end = sorted((x(0), x(exponent)))
        lines.append(
            f'<rect x="{begin}" y="{y:g}" width="{round(end - begin, 1)}" height="{BAR}" '
            f'fill="{BETTER if exponent >= 0 else WORSE}"/>'
        )
        lines.append(_text(LEFT - 10 if low == 0 else x(low) - 10, y + 14, bar.label, anchor="end"))
        values = f"{_number(bar.value)} against {_number(bar.reference)} {bar.unit}"
        lines.append(_text(max(end, x(0)) + 8, y + 14, _times(bar.times), weight="bold"))
        lines.append(_text(max(end, x(0)) + 54, y + 14, values, size=12))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, *, size: int = 14, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" fill="{INK}">'
        f"{escape(text)}</text>"
    )


def _times(times: float) -> str:
    return f"{times:.0f}×" if times >= 10 else f"{times:.1f}×"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def main() -> None:
    """Command line."""
    source, target = map(Path, sys.argv[1:])
    plot(parse(source.read_text(encoding="utf-8")), target)


if __name__ == "__main__":
    main()
