"""Moves the wall clock of a Python process by the seconds in the file CRISP_TEST_CLOCK, which can change at any time.

Python imports this at its start where it is on the path. Clocks that the process reads otherwise are as ever: the monotonic
one, the kernel's time stamps of files, gRPC's own.
"""

import os
import time
from pathlib import Path

if file := os.environ.get("CRISP_TEST_CLOCK"):
    real_ns = time.time_ns

    def moved_ns() -> int:
        return real_ns() + int(Path(file).read_text() or 0) * 1_000_000_000

    time.time_ns = moved_ns
    time.time = lambda: moved_ns() / 1e9
