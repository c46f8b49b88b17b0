"""How long short commands take, from their start to their end.

    .venv/bin/python -m tests.bench.command [--rounds 40] [TREE ...]

A daemon of the benchmark's own, without pods; the commands of this checkout, or of several ones, take turns. All run with
this Python and with compiled modules. Prints medians: the time, and the processor time of the command alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.runtimes import ROOT, Crisp, isolate

COMMANDS = ("ps", "images", "version")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trees", nargs="*", default=[str(ROOT)])
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    isolate()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    directory = Path(tempfile.mkdtemp(prefix="crisp-bench-", dir="/var/tmp"))
    daemon = Crisp(directory / "crisp")
    try:
        daemon.start().__exit__(None, None, None)
        for command in COMMANDS:
            runs = [
                (tree, measure(tree, daemon.socket, command))
                for _ in range(arguments.rounds + 1)
                for tree in arguments.trees
            ]
            for tree in arguments.trees:
                wall, cpu = zip(*[took for of, took in runs if of == tree][1:], strict=True)  # the first one compiles
                print(f"{tree}: crisp {command}: {statistics.median(wall):.0f} ms, CPU {statistics.median(cpu):.0f} ms")
    finally:
        daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)


def measure(tree: str, socket_path: str, command: str) -> tuple[float, float]:
    """Milliseconds of one run, and of its processor time."""
    began = time.monotonic()
    line = [sys.executable, os.path.join(tree, "crisp.py"), "--socket", socket_path, command]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    took = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"crisp {command} has failed")
    return took * 1000, (used.ru_utime + used.ru_stime) * 1000


if __name__ == "__main__":
    main()
