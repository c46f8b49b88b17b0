"""Everything beside containerd, in one table.

    .venv/bin/python -m tests.bench [--rounds 10] [--most 500] [--socket NAME=/path/to/cri.sock]
                               [--containerd PATH] [--plot FILE.svg]

All runtimes are driven by the same client with the same image from the same registry, in a network namespace of the
benchmark's own: containerd, crisp with the OCI runtime that it chooses, and crisp with runc, which containerd uses. The
first pods alternate between them; for everything else only one of them runs. Times are medians.

Runtimes that run already are added by the name and path of their sockets. They must reach the registry on this loopback, so
the benchmark then stays in the network namespace that it was started in; their processes are not looked at.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from tests.bench import pods, pull, throughput
from tests.bench.plot import plot
from tests.bench.report import Figures, parse, table
from tests.bench.runtimes import Crisp, Given, Runtime, containerd_of, isolate
from tests.bench.subject import push_image, running
from tests.images.registry_server import Registry

THREADS = (1, 4, 8, 16)
LOG_TIMES = 60  # of 8 MiB
START_UPS = 3


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--most", type=int, default=500, help="pods at the end")
    parser.add_argument("--pull", type=int, default=3, help="rounds of pulling 1 GB")
    parser.add_argument("--socket", action="append", default=[], metavar="NAME=PATH", help="of a runtime that runs already")
    parser.add_argument(
        "--containerd", default="", metavar="PATH", help="program of version 2, in place of what is installed"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    if options.most < 2 * pods.FEW:
        parser.error(f"--most is at least {2 * pods.FEW}")
    if not options.socket:
        isolate()
    base = Path(tempfile.mkdtemp(prefix="crisp-bench-", dir="/var/tmp"))
    registry = Registry(base / "registry")
    try:
        image = push_image(base, registry)

        def runtimes(place: Path) -> list[Runtime]:
            return [
                containerd_of(place / "containerd", image, options.containerd),
                Crisp(place / "crisp"),
                Crisp(place / "crisp-runc", "runc"),
                *(Given(*each.split("=", 1)) for each in options.socket),
            ]

        (base / "logs").mkdir()
        results = together(runtimes(base / "together"), image, base / "logs", options.rounds)
        for runtime, figures in zip(runtimes(base / "alone"), results, strict=True):
            alone(runtime, figures, image, base / "logs", options)
    finally:
        registry.close()
        shutil.rmtree(base, ignore_errors=True)
    if options.pull:
        medians = pull.medians(1024, 12, 60_000, options.pull, containerd=options.containerd)
        for figures, name in zip(results, ("containerd", "crisp"), strict=False):
            figures.values["pull of 1 GB, s"] = medians[name]["seconds"]
            figures.values["the same until on disk, s"] = medians[name]["synced"]
    print(table(results))
    if options.plot:
        plot(parse(table(results)), options.plot)  # as the document rounds it


def together(runtimes: list[Runtime], image: str, logs: Path, rounds: int) -> list[Figures]:
    """Single pods, in turn on runtimes that all run."""
    results = [Figures(f"{r.name} ({r.handler})" if r.handler else r.name) for r in runtimes]
    samples: list[list[dict[str, float]]] = [[] for _ in runtimes]
    with ExitStack() as stack:
        subjects = [stack.enter_context(running(runtime, image, logs)) for runtime in runtimes]
        for subject in subjects:
            subject.pod().end()  # warm
        for _ in range(rounds):
            for subject, taken in zip(subjects, samples, strict=True):
                taken.append(dict(pods.one_by_one(subject, 1, 1)))
    for figures, taken in zip(results, samples, strict=True):
        _record(figures, ((key, statistics.median(values[key] for values in taken)) for key in taken[0]))
    return results


def alone(runtime: Runtime, figures: Figures, image: str, logs: Path, options: argparse.Namespace) -> None:
    """What needs the machine, or would be counted for the others."""
    with running(runtime, image, logs) as subject:
        _record(figures, pods.start_up(subject, START_UPS))
        for threads in THREADS:
            _record(figures, pods.at_once(subject, threads, options.rounds * 4))
        _record(figures, pods.small_pull(subject, options.rounds))
        _record(figures, throughput.log(subject, LOG_TIMES))
        _record(figures, throughput.attach(subject, LOG_TIMES // 4))
        _record(figures, pods.crowd(subject, options.most, options.rounds))


def _record(figures: Figures, rows: Iterable[tuple[str, float]]) -> None:
    for key, value in rows:
        figures.values[key] = value
        print(f"{figures.name}: {key}: {value:.1f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
