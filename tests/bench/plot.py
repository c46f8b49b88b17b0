"""What was measured, as a picture."""

from __future__ import annotations

from pathlib import Path

import pygal
from pygal.style import CleanStyle

from tests.bench.report import Figures

RATE = "/s"
"""End of the names of rows of which more is better; of all others less is."""


def plot(results: list[Figures], target: Path) -> None:
    """How many times better than the first each of the others is, on a logarithmic scale, as SVG."""
    base = results[0]
    keys = [key for key in base.values if base.values[key] and all(result.values.get(key) for result in results)]
    chart = pygal.HorizontalBar(
        title=f"times better than {base.name}",
        logarithmic=True,
        style=CleanStyle(),
        height=60 + 40 * len(keys),
        legend_at_bottom=True,
        print_values=True,
        value_formatter=lambda value: f"{value:.1f}",
        js=(),
    )
    chart.x_labels = keys
    for result in results[1:]:
        chart.add(result.name, [_times_better(key, result.values[key], base.values[key]) for key in keys])
    chart.render_to_file(str(target))


def _times_better(key: str, value: float, reference: float) -> float:
    return value / reference if key.partition(",")[0].endswith(RATE) else reference / value
