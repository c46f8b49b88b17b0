"""What was measured, as a table in Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Figures:
    """What one runtime took, by row."""

    name: str
    values: dict[str, float] = field(default_factory=dict)


def table(results: list[Figures]) -> str:
    """Markdown; ratios are to the first column, and what a runtime cannot be asked for is a dash."""
    base = results[0]
    lines = ["| | " + " | ".join(r.name + (" | ratio" if r is not base else "") for r in results) + " |"]
    lines.append("|---|" + "---|" * (2 * len(results) - 1))
    for key in dict.fromkeys(key for result in results for key in result.values):
        reference = base.values.get(key)
        cells = [_number(reference)]
        for result in results[1:]:
            value = result.values.get(key)
            cells += [_number(value), f"{value / reference:.2f}" if value is not None and reference else "–"]
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(text: str) -> list[Figures]:
    """The first table of `table` in a Markdown text."""
    lines = text.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("| |") and "| ratio |" in line)
    names = _cells(lines[begin])
    columns = [number for number, name in enumerate(names) if name and name != "ratio"]
    results = [Figures(names[column]) for column in columns]
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        key, *_ = cells = _cells(line)
        for result, column in zip(results, columns, strict=True):
            if cells[column] != "–":
                result.values[key] = float(cells[column])
    return results


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"
