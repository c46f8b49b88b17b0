"""shim/packing.py: holes of an allocator that has no pools of the expected form are not filled without end."""

from __future__ import annotations

import sys

import pytest

from shim import packing


def test_an_allocator_with_other_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    filling: list[object] = []
    monkeypatch.setattr(packing, "_filling", filling)
    monkeypatch.setattr(packing, "HEADER", 1)
    packing.fill_holes()
    assert packing.MOST - 600 <= sum(map(sys.getsizeof, filling)) <= packing.MOST
