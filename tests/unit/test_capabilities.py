"""kernel/capabilities.py: names and numbers of <linux/capability.h>."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import capabilities


@pytest.mark.parametrize(("name", "number"), [("CAP_CHOWN", 0), ("CAP_SYS_ADMIN", 21), ("CAP_CHECKPOINT_RESTORE", 40)])
def test_numbers(name: str, number: int) -> None:
    assert capabilities.NUMBERS[name] == number


@given(st.integers(0, (1 << len(capabilities.NAMES)) - 1))
def test_masks(mask: int) -> None:
    assert capabilities.to_mask(capabilities.from_mask(mask)) == mask


@pytest.mark.parametrize("name", ["net_admin", "NET_ADMIN", "CAP_NET_ADMIN", "cap_net_admin"])
def test_names(name: str) -> None:
    assert capabilities.normal_name(name) == "CAP_NET_ADMIN"


def test_unknown_name() -> None:
    assert capabilities.normal_name("FLY") is None


def test_bounding_set_is_the_kernels() -> None:
    with open("/proc/self/status") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("CapBnd"))
    assert capabilities.bounding_set() == capabilities.from_mask(mask)
