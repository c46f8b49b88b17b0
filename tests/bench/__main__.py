"""Everything beside containerd, in one table.

    .venv/bin/python -m tests.bench [--rounds 10] [--most 500] [--socket NAME=/path/to/cri.sock] [--plot FILE.svg]

All runtimes are driven by the same client with the same image from the same registry, in a network namespace of the
benchmark's own: containerd, crisp with the OCI runtime that it chooses, and crisp with runc, which containerd uses. The
first pods alternate between them; a crowd of pods is on one at a time. Times are medians.

Runtimes that run already are added by the name and path of their sockets. They must reach the registry on this loopback, so
the benchmark then stays in the network namespace that it was started in; their processes are not looked at.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from tests.bench import pods, pull, throughput
from tests.bench.plot import plot
from tests.bench.report import Figures, table
from tests.bench.runtimes import Containerd, Crisp, Given, Runtime, isolate
from tests.bench.subject import push_image, running
from tests.images.registry_server import Registry

THREADS = (1, 4, 8, 16)
LOG_TIMES = 60  # of 8 MiB


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--most", type=int, default=500, help="pods at the end")
    parser.add_argument("--pull", type=int, default=3, help="rounds of pulling 1 GB")
    parser.add_argument("--socket", action="append", default=[], metavar="NAME=PATH", help="of a runtime that runs already")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    if not options.socket:
        isolate()
    base = Path(tempfile.mkdtemp(prefix="crisp-bench-", dir="/var/tmp"))
    registry = Registry(base / "registry")
    try:
        image = push_image(base, registry)
        runtimes: list[Runtime] = [
            Containerd(base / "containerd", image),
            Crisp(base / "crisp"),
            Crisp(base / "crisp-runc", "runc"),
            *(Given(*each.split("=", 1)) for each in options.socket),
        ]
        results = measure(runtimes, image, base / "logs", options)
    finally:
        registry.close()
        shutil.rmtree(base, ignore_errors=True)
    if options.pull:
        medians = pull.medians(megabytes=1024, layers=12, files=60_000, rounds=options.pull)
        for figures, name in zip(results, ("containerd", "crisp"), strict=False):
            figures.values["pull of 1 GB, s"] = medians[name]["seconds"]
            figures.values["the same until on disk, s"] = medians[name]["synced"]
    print(table(results))
    if options.plot:
        plot(results, options.plot)


def measure(runtimes: list[Runtime], image: str, logs: Path, options: argparse.Namespace) -> list[Figures]:
    """All sections on all runtimes."""
    logs.mkdir()
    results = [Figures(f"{r.name} ({r.handler})" if r.handler else r.name) for r in runtimes]
    with ExitStack() as stack:
        subjects = [stack.enter_context(running(runtime, image, logs)) for runtime in runtimes]
        each = list(zip(subjects, results, strict=True))
        for subject in subjects:
            subject.pod().end()  # warm
        samples: list[list[dict[str, float]]] = [[] for _ in each]
        for _ in range(options.rounds):
            for (subject, _), taken in zip(each, samples, strict=True):
                taken.append(dict(pods.one_by_one(subject, 1, 1)))
        for (_, figures), taken in zip(each, samples, strict=True):
            figures.values.update(_medians(taken))
        for subject, figures in each:
            for threads in THREADS:
                _record(figures, pods.at_once(subject, threads, options.rounds * 4))
            _record(figures, pods.small_pull(subject, options.rounds))
            _record(figures, throughput.log(subject, LOG_TIMES))
            _record(figures, throughput.attach(subject, LOG_TIMES // 4))
        for subject, figures in each:
            _record(figures, pods.crowd(subject, options.most, options.rounds))
    return results


def _record(figures: Figures, rows: Iterable[tuple[str, float]]) -> None:
    for key, value in rows:
        figures.values[key] = value
        print(f"{figures.name}: {key}: {value:.1f}", file=sys.stderr, flush=True)


def _medians(taken: list[dict[str, float]]) -> dict[str, float]:
    return {key: sorted(values[key] for values in taken)[len(taken) // 2] for key in taken[0]}


if __name__ == "__main__":
    main()
