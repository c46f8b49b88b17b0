"""Make the product wrong in many places, one at a time, and count how often a test notices (`make mutants`).

    python -m tests.mutants [--count 100] [--seed 1] [--first 0] [--jobs 2] [--seconds 110] [--show]

Each change is made in a copy of the tree. The unit tests that import the module run first, then those of its room. That a
test noticed is believed if it does so again, and passes on the unchanged copy. Needs root.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants import choice, places
from tests.mutants.trial import Copy, Outcome

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--count", type=int, default=100, help="how many places")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="leave out so many of them")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    parser.add_argument("--seconds", type=float, default=110.0, help="for the tests of one place; more on a busy machine")
    parser.add_argument("--match", default="", help="only places whose description matches this")
    parser.add_argument("--show", action="store_true", help="name the places and run nothing")
    options = parser.parse_args()
    chosen = places.chosen(ROOT, options.seed, options.count)[options.first :]
    chosen = [place for place in chosen if re.search(options.match, str(place))]
    if options.show:
        for place in chosen:
            print(_describe(place))
        return 0
    os.nice(5)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    noticed = 0
    survivors: list[places.Place] = []
    with tempfile.TemporaryDirectory(prefix="crisp-mutants-", dir="/var/lib") as name:
        with multiprocessing.Pool(options.jobs, _Worker.begin, (Path(name), options.seconds)) as pool:
            for place, outcome in pool.imap_unordered(_Worker.work, chosen):
                noticed += outcome.noticed is not None
                if outcome.noticed is None:
                    survivors.append(place)
                what = f"noticed by {outcome.noticed}" if outcome.noticed else "SURVIVED"
                print(f"{place}: {what} ({outcome.seconds:.0f} s)", flush=True)
    print(f"\n{noticed} of {len(chosen)} noticed. Survivors:")
    for place in survivors:
        print(_describe(place))
    return 0


class _Worker:
    """A process with a copy of its own."""

    copy: Copy
    seconds: float

    @classmethod
    def begin(cls, directory: Path, seconds: float) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        cls.seconds = seconds
        cls.copy = Copy(ROOT, directory / str(os.getpid()))

    @classmethod
    def work(cls, place: places.Place) -> tuple[places.Place, Outcome]:
        return place, _try(cls.copy, place, cls.seconds)


def _try(copy: Copy, place: places.Place, seconds: float) -> Outcome:
    begin = time.monotonic()
    source = copy.change(place)
    try:
        outcome = copy.run([*choice.near(ROOT, place.file), *choice.wide(ROOT, place.file)], seconds)
        if outcome.noticed is not None and not _means_it(copy, place, source, outcome.noticed, seconds):
            outcome = Outcome(None, 0)
    finally:
        copy.write(place, source)
    return Outcome(outcome.noticed, time.monotonic() - begin)


def _means_it(copy: Copy, place: places.Place, source: str, test: str, seconds: float) -> bool:
    """Whether a test fails again with the change, and passes without it: else it was the machine that failed it."""
    if "::" not in test:
        return True
    again = copy.run([test], seconds).noticed is not None
    copy.write(place, source)
    if again and copy.run([test], seconds).noticed is None:
        return True
    print(f"{place}: {test} fails now and then, or without the change too", file=sys.stderr, flush=True)
    return False


def _describe(place: places.Place) -> str:
    line = place.line((ROOT / place.file).read_text())
    return f"- {place}: `{line}` → `{place.text}`"


if __name__ == "__main__":
    sys.exit(main())
