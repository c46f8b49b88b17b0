"""The daemon against the model of machine.py.

CRISP_SOAK_SECONDS sets for how long new sequences are made (0: one round, some 20 s); CRISP_MODEL_SEED names the first one.
A failure names its seed; with the seed set it is shrunk to a short sequence.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.harness.daemon import Daemon
from tests.harness.kubelet import Kubelet
from tests.harness.rootfs import make_rootfs
from tests.model.machine import Machine

pytestmark = pytest.mark.root

SECONDS = float(os.environ.get("CRISP_SOAK_SECONDS", "0"))
SEED = os.environ.get("CRISP_MODEL_SEED", "")
EXAMPLES = 12
STEPS = 25


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    daemon = Daemon()
    daemon.start()
    yield Kubelet.on(daemon, make_rootfs(tmp_path / "rootfs"))
    daemon.destroy()


def test_the_daemon_does_what_the_model_says(kubelet: Kubelet) -> None:
    deadline = time.monotonic() + SECONDS
    number = int(SEED) if SEED else (time.time_ns() % 1_000_000 if SECONDS else 0)
    while True:
        one_round(kubelet, number)
        number += 1
        if time.monotonic() >= deadline:
            return


def one_round(kubelet: Kubelet, number: int) -> None:
    phases = (Phase.generate, Phase.shrink) if SEED else (Phase.generate,)
    rules = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )

    @seed(number)
    class Seeded(Machine):
        pass

    Seeded.kubelet = kubelet
    try:
        run_state_machine_as_test(Seeded, settings=rules)  # type: ignore[no-untyped-call]
    except Exception as error:
        error.add_note("\n".join(Seeded.failures[:1]))
        error.add_note(f"again, and shrunk: CRISP_MODEL_SEED={number} pytest tests/model")
        raise
