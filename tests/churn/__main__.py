"""python -m tests.churn --pods 2000: churn, then a table of what the daemon and its pods held before and after.

Ends with 1 if anything is not as it was. In a network namespace of its own, with directories of its own; needs root.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.churn import census
from tests.churn.run import Run
from tests.conftest import pytest_configure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.churn")
    parser.add_argument("--pods", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=8)
    options = parser.parse_args()
    pytest_configure(None)  # type: ignore[arg-type]  # the network namespace

    with Run() as run:
        begin = time.monotonic()

        def progress(done: int) -> None:
            if done % 100 == 0:
                rate = done / (time.monotonic() - begin)
                print(f"{done} pods, {rate:.1f}/s, daemon {run.pss_kib() >> 10} MiB", file=sys.stderr, flush=True)

        before, after = run.measure(options.pods, options.at_once, progress)
        seconds = time.monotonic() - begin
    print(census.table(before, after))
    print(f"\n{options.pods} pods, {options.at_once} at once, in {seconds:.0f} s; beside them {run.churn.pulls} pulls,")
    print(f"{run.churn.execs} execs and {run.churn.rotations} log rotations.")
    if wrong := [*census.differences(before, after), *run.rows_left]:
        print(f"not as it was: {', '.join(wrong)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
