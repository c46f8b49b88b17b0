"""A small churn run: everything is as it was. `make churn` runs 2000 pods."""

from __future__ import annotations

import pytest

from tests.churn import census
from tests.churn.run import Run

pytestmark = pytest.mark.root


def test_everything_is_as_it_was() -> None:
    with Run() as run:
        before, after = run.measure(40, 8)
    assert census.differences(before, after) == [], census.table(before, after)
    assert run.rows_left == []
    assert run.churn.pulls
    assert run.churn.execs
    assert run.churn.rotations
