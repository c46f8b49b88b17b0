"""The picture of what was measured: bars show better where it is better, and the one in the docs is that of its table."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.bench import plot
from tests.bench.report import Figures, parse, table

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    ("key", "larger"),
    [
        ("pod start, pod 1, ms", False),
        ("ExecSync, pod 300, ms", False),
        ("pods/s, 8 at once", True),
        ("log, MB/s", True),
        ("attach, MB/s", True),
        ("memory per pod, MiB", False),
        ("pull of 1 GB, s", False),
        ("of it lost at the end, KB", False),
        ("idle CPU with 299 pods, ms a minute", False),
    ],
)
def test_which_rows_are_better_when_larger(key: str, larger: bool) -> None:
    assert plot.better_when_larger(key) is larger


def figures(**values: float) -> Figures:
    keys = {
        "start": "pod start, pod 1, ms",
        "rate": "pods/s, 8 at once",
        "log": "log, MB/s",
        "memory": "memory per pod, MiB",
    }
    return Figures("x", {keys[name]: value for name, value in values.items()})


def test_bars_are_times_better_and_sorted() -> None:
    found = plot.bars(figures(start=100, rate=5, log=30, memory=3), figures(start=50, rate=20, log=180, memory=6))
    assert [(bar.label, bar.times, bar.unit) for bar in found] == [
        ("container log", 6.0, "MB/s"),
        ("pods per second, 8 at once", 4.0, "pods/s"),
        ("start of a pod", 2.0, "ms"),
        ("memory of a further pod", 0.5, "MiB"),
    ]


def test_rows_that_one_has_not_are_left_out() -> None:
    assert plot.bars(figures(start=1, log=0), figures(start=1, log=5, rate=3)) == [plot.Bar("start of a pod", 1, 1, 1, "ms")]


def test_a_table_is_read_as_it_was_written() -> None:
    results = [figures(start=100.4, rate=5), Figures("crisp (runc)", {"log, MB/s": 2000.0})]
    assert parse("text\n\n" + table(results) + "\n\nmore") == results


def test_better_is_to_the_right_of_1() -> None:
    rows = plot.bars(figures(start=100, log=30), figures(start=400, log=60))
    root = ElementTree.fromstring(plot.svg(rows, "this", "that & others"))
    background, better, worse = root.findall("{http://www.w3.org/2000/svg}rect")
    assert float(better.attrib["x"]) == float(worse.attrib["x"]) + float(worse.attrib["width"])
    assert better.attrib["fill"] != worse.attrib["fill"]
    assert float(worse.attrib["width"]) == pytest.approx(2 * float(better.attrib["width"]), abs=0.2)
    assert background.attrib["width"]


def test_the_picture_in_the_docs_is_that_of_its_table(tmp_path: Path) -> None:
    """python -m tests.bench.plot docs/performance.md docs/performance.svg"""
    results = parse((DOCS / "performance.md").read_text())
    assert len(plot.bars(*results[:2])) == len(plot.ROWS) == 10
    plot.plot(results, tmp_path / "picture.svg")
    assert (DOCS / "performance.svg").read_text() == (tmp_path / "picture.svg").read_text()
