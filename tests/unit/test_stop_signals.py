"""Stop signals are mapped by CRI's number, and images name them as kill(1) does."""

from __future__ import annotations

import signal

import pytest

from proto import api_pb2 as cri
from proto.errors import CrispError
from runtime.oci import stop_signals


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("9", 9),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-1", signal.SIGRTMAX - 1),
        ("SIGPOLL", signal.SIGIO),
    ],
)
def test_names(name: str, number: int) -> None:
    assert stop_signals.parse(name) == number


@pytest.mark.parametrize("name", ["SIGNOPE", "0", "65", "RTMIN+99", "", "SIG"])
def test_bad_names(name: str) -> None:
    with pytest.raises(CrispError):
        stop_signals.parse(name)


def test_every_cri_signal_has_a_number() -> None:
    values = {v.number for v in cri.Signal.DESCRIPTOR.values} - {cri.SIGNAL_RUNTIME_DEFAULT}
    assert set(stop_signals.BY_CRI_NUMBER) == values
    assert stop_signals.BY_CRI_NUMBER[23] == signal.SIGTERM
    assert stop_signals.BY_CRI_NUMBER[13] == signal.SIGKILL
    assert stop_signals.BY_CRI_NUMBER[65] == signal.SIGRTMAX
    assert stop_signals.BY_CRI_NUMBER[51] == signal.SIGRTMAX - 14


def test_choice() -> None:
    assert stop_signals.choose(cri.SIGNAL_SIGHUP, "SIGINT") == signal.SIGHUP
    assert stop_signals.choose(cri.SIGNAL_RUNTIME_DEFAULT, "SIGINT") == signal.SIGINT
    assert stop_signals.choose(cri.SIGNAL_RUNTIME_DEFAULT, "") == signal.SIGTERM
