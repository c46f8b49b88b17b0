"""runtime/oci/systemd_limits.py"""

from __future__ import annotations

from typing import Any

import pytest

from runtime.oci import systemd_limits

MIB = 1 << 20


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, {}),
        ({"memory": {"limit": 64 * MIB}}, {"MemoryMax": 64 * MIB}),
        ({"memory": {"limit": 64 * MIB, "swap": 96 * MIB}}, {"MemoryMax": 64 * MIB, "MemorySwapMax": 32 * MIB}),
        ({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}}, {"MemoryMax": 64 * MIB, "MemorySwapMax": 0}),
        ({"cpu": {"quota": 25_000, "period": 50_000}}, {"CPUQuotaPerSecUSec": 500_000, "CPUQuotaPeriodUSec": 50_000}),
        ({"cpu": {"quota": -1, "shares": 2}}, {}),
        ({"unified": {"memory.high": "max", "memory.min": "4096", "io.weight": "default 50"}}, {"MemoryMin": 4096}),
    ],
)
def test_annotations(resources: dict[str, Any], expected: dict[str, int]) -> None:
    if "unified" in resources:
        expected = {**expected, "MemoryHigh": systemd_limits.INFINITY}
    found = systemd_limits.new_annotations(resources)
    assert found == {f"org.systemd.property.{name}": f"uint64 {value}" for name, value in expected.items()}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"memory": {"limit": -1, "swap": -1}}, ["MemoryMax=infinity", "MemorySwapMax=infinity"]),
        ({"cpu": {"quota": 12_340, "period": 100_000}}, ["CPUQuota=12.34%", "CPUQuotaPeriodSec=100000us"]),
        ({"cpu": {"quota": 250_000}}, ["CPUQuota=250.00%", "CPUQuotaPeriodSec=100000us"]),
        ({"cpu": {"quota": -1, "period": 100_000}}, ["CPUQuota=", "CPUQuotaPeriodSec=100000us"]),
        ({"cpu": {"cpus": "0-2,7", "mems": "0"}}, ["AllowedCPUs=0-2,7", "AllowedMemoryNodes=0"]),
    ],
)
def test_assignments(resources: dict[str, Any], expected: list[str]) -> None:
    assert systemd_limits.assignments(resources) == expected
