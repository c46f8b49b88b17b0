"""Signals to the command while it puts things in order."""

from __future__ import annotations

import os
import signal

import pytest

from runtime.cli.signals import Signals


def test_what_is_held_is_told_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    done = []
    with pytest.raises(SystemExit) as ended, Signals().told() as signals, signals.held():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("all")
    assert (ended.value.code, done, capsys.readouterr().err) == (143, ["all"], "")


@pytest.mark.parametrize("how", ["held", "ignored"])
def test_the_third_ends_it_all_the_same(capsys: pytest.CaptureFixture[str], how: str) -> None:
    done = []

    def hang() -> None:
        for number in range(4):
            os.kill(os.getpid(), signal.SIGINT)
            done.append(number)

    with pytest.raises(SystemExit) as ended, Signals().told() as signals:
        if how == "held":
            with signals.held():
                hang()
        signals.ignore()
        hang()
    assert (ended.value.code, done) == (130, [0, 1])
    assert "crisp pod ls" in capsys.readouterr().err
