"""What an OCI runtime's `features` say of the newest fields of the configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.host.handler_probe import known_fields
from runtime.host.handlers import FIELDS

RUNC = {
    "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
    "memoryPolicy": {"modes": ["MPOL_BIND"], "flags": []},
    "netDevices": {"enabled": True},
}


@pytest.mark.parametrize(
    ("linux", "expected"),
    [
        (RUNC, {*FIELDS}),
        (RUNC | {"netDevices": {"enabled": False}}, {*FIELDS} - {"netDevices"}),
        (RUNC | {"memoryPolicy": None}, {*FIELDS} - {"memoryPolicy"}),
        ({"intelRdt": {"enabled": True}}, set()),
        ({}, set()),
    ],
)
def test_what_is_said_is_known(linux: dict[str, Any], expected: set[str]) -> None:
    assert known_fields(json.dumps({"ociVersionMin": "1.0.0", "linux": linux}).encode()) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["linux", "netDevices", "intelRdt"]), inner),
    max_leaves=6,
)


@given(
    st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | JSON.map(lambda v: json.dumps({"linux": v}).encode())
)
def test_what_is_no_such_answer_knows_nothing(output: bytes) -> None:
    assert known_fields(output) <= {*FIELDS}


def test_a_runtime_without_the_command() -> None:
    assert known_fields(b"") == known_fields(b"unknown command features\n") == frozenset()
