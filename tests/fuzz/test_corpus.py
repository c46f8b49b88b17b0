"""Every input in the corpus, changed or not, through its target: what the fuzzer has found once is found again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import document_targets, layer_targets, nri_targets, streaming_targets

TARGETS = {**streaming_targets.TARGETS, **document_targets.TARGETS, **nri_targets.TARGETS, **layer_targets.TARGETS}
CORPUS = Path(__file__).parent / "corpus"


def inputs(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change, remove, double or insert some bytes."""
    mutable = bytearray(data)
    for _ in range(source.randint(1, 8)):
        at = source.randrange(len(mutable) + 1)
        length = source.randint(1, 8)
        match source.randrange(4):
            case 0:
                mutable[at : at + length] = source.randbytes(length)
            case 1:
                del mutable[at : at + length]
            case 2:
                mutable[at:at] = mutable[at : at + length]
            case _:
                mutable[at:at] = source.randbytes(length)
    return bytes(mutable)


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target: str) -> None:
    assert inputs(target)
    for path in sorted((CORPUS / target).iterdir()):
        try:
            TARGETS[target](path.read_bytes())
        except Exception as error:
            error.add_note(str(path))
            raise


@pytest.mark.parametrize("target", TARGETS)
@given(number=st.integers(0, 2**32))
def test_mutations(target: str, number: int) -> None:
    source = random.Random(number)
    TARGETS[target](mutate(source.choice(inputs(target)), source))


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.binary(max_size=300))
def test_any_bytes(target: str, data: bytes) -> None:
    TARGETS[target](data)
