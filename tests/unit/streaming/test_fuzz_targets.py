"""The fuzz targets hold for well-formed input and for what Hypothesis makes of it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.streaming import TARGETS, mutate, seed


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str) -> None:
    TARGETS[target](seed(target))


@pytest.mark.parametrize("target", TARGETS)
@given(number=st.integers(0, 2**32))
def test_mutations(target: str, number: int) -> None:
    TARGETS[target](mutate(seed(target), random.Random(number)))


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.binary(max_size=300))
def test_any_bytes(target: str, data: bytes) -> None:
    TARGETS[target](data)
