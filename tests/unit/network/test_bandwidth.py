from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import Code, CrispError
from runtime.network.bandwidth import EGRESS, INGRESS, MIN_BURST, Bandwidth, Shape, bandwidth_of


@pytest.mark.parametrize(
    ("quantity", "bits"),
    [
        ("10M", 10_000_000),
        ("1Gi", 2**30),
        ("1.5k", 1500),
        (".5M", 500_000),
        ("2e6", 2_000_000),
        ("8000000m", 8000),
        ("+64k", 64_000),
        ("1P", 10**15),
        ("100000", 100_000),
    ],
)
def test_quantities(quantity: str, bits: int) -> None:
    assert bandwidth_of({INGRESS: quantity}) == Bandwidth(Shape(bits // 8), None)


@pytest.mark.parametrize("quantity", ["", "fast", "10 M", "-5M", "999", "2P", "1e400", "1e99999999999", "9" * 40, "1KB"])
def test_bad_quantities_name_the_annotation(quantity: str) -> None:
    with pytest.raises(CrispError, match=EGRESS) as caught:
        bandwidth_of({EGRESS: quantity})
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_no_annotation_no_limit() -> None:
    assert bandwidth_of({"other": "1"}) == Bandwidth(None, None)


@given(st.integers(125, 10**15 // 8))
def test_a_bucket_always_passes_the_largest_packet(rate: int) -> None:
    shape = Shape(rate)
    assert MIN_BURST <= shape.burst < shape.queue or rate < 40


@given(st.text(max_size=40))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        bandwidth_of({INGRESS: text})
    except CrispError as error:
        assert error.code is Code.INVALID_ARGUMENT
