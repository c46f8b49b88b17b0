"""Fuzz with atheris, guided by coverage (`make fuzz`).

    python -m tests.fuzz [SECONDS]              every target for so long (60 s)
    python -m tests.fuzz TARGET [SECONDS]       one

An input that fails is written to ./crash-*; copy it to tests/fuzz/corpus/TARGET once it is understood, and each `make test`
tries it from then on.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["proto", "shim", "imagesvc", "runtime"]):
    from tests.fuzz import document_targets, layer_targets, nri_targets, streaming_targets

TARGETS = {**streaming_targets.TARGETS, **document_targets.TARGETS, **nri_targets.TARGETS, **layer_targets.TARGETS}
CORPUS = Path(__file__).parent / "corpus"
LONGEST = 4096  # bytes of an input


def main() -> None:
    """Command line."""
    match sys.argv[1:]:
        case [name, *rest] if name in TARGETS:
            fuzz(name, float(rest[0]) if rest else 60.0)
        case rest if len(rest) <= 1:
            for name in TARGETS:
                print(f"--- {name}", flush=True)
                subprocess.run([sys.executable, "-m", "tests.fuzz", name, *(rest or ["60"])], check=True)
        case _:
            sys.exit(__doc__)


def fuzz(name: str, seconds: float) -> None:
    """Never returns: libFuzzer ends the process."""
    with tempfile.TemporaryDirectory(prefix="crisp-fuzz-") as fresh:
        # The first directory takes what is found; the corpus in the repository grows only by hand.
        limits = [f"-max_total_time={seconds:g}", f"-max_len={LONGEST}", "-timeout=10", "-rss_limit_mb=2048", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", fresh, str(CORPUS / name)], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
