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
        ({"unified": {"memory.high": "max", "memory.min": "4096"}}, {"MemoryMin": 4096}),
        ({"unified": {"io.weight": "default 50", "cpu.weight": "77"}}, {"IOWeight": 50, "CPUWeight": 77}),
        ({"unified": {"io.weight": "8:0 50", "cpu.idle": "1"}}, {"CPUWeight": 0}),
        ({"unified": {"cpu.max": "25000 50000"}}, {"CPUQuotaPerSecUSec": 500_000, "CPUQuotaPeriodUSec": 50_000}),
        ({"unified": {"cpu.max": "max"}}, {}),
        ({"blockIO": {"weight": 500}}, {"IOWeight": 4950}),
        ({"pids": {"limit": 9}}, {"TasksMax": 9}),
        ({"pids": {"limit": -1}}, {"TasksMax": systemd_limits.INFINITY}),
        ({"memory": {"reservation": MIB}}, {"MemoryLow": MIB}),
    ],
)
def test_annotations(resources: dict[str, Any], expected: dict[str, int]) -> None:
    if "memory.high" in resources.get("unified", {}):
        expected = {**expected, "MemoryHigh": systemd_limits.INFINITY}
    found = systemd_limits.new_annotations(resources)
    assert found == {f"org.systemd.property.{name}": f"uint64 {value}" for name, value in expected.items()}


@pytest.mark.parametrize(("value", "policy"), [("1", "kill"), ("0\n", "continue")])
def test_who_is_killed_when_memory_runs_out(value: str, policy: str) -> None:
    found = systemd_limits.new_annotations({"unified": {"memory.oom.group": value}})
    assert found == {"org.systemd.property.OOMPolicy": f"'{policy}'"}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"unified": {"cpu.max": "max 100000"}}, ["CPUQuota=", "CPUQuotaPeriodSec=100000us"]),
        ({"unified": {"cpu.idle": "1"}}, ["CPUWeight=idle"]),
        ({"unified": {"io.weight": "default 20\n8:0 30"}}, ["IOWeight=20", "IODeviceWeight=/dev/block/8:0 30"]),
        ({"unified": {"cpuset.cpus": "0"}}, ["AllowedCPUs=0"]),
        ({"memory": {"limit": -1, "swap": -1}}, ["MemoryMax=infinity", "MemorySwapMax=infinity"]),
        ({"cpu": {"quota": 12_340, "period": 100_000}}, ["CPUQuota=12.34%", "CPUQuotaPeriodSec=100000us"]),
        ({"cpu": {"quota": 250_000}}, ["CPUQuota=250.00%", "CPUQuotaPeriodSec=100000us"]),
        ({"cpu": {"quota": -1, "period": 100_000}}, ["CPUQuota=", "CPUQuotaPeriodSec=100000us"]),
        ({"cpu": {"cpus": "0-2,7", "mems": "0"}}, ["AllowedCPUs=0-2,7", "AllowedMemoryNodes=0"]),
    ],
)
def test_assignments(resources: dict[str, Any], expected: list[str]) -> None:
    assert systemd_limits.assignments(resources) == expected


def test_no_limit_is_what_systemd_says() -> None:
    """sd-bus has 64 bits for it, and CGROUP_LIMIT_MAX is all of them."""
    assert systemd_limits.INFINITY == 0xFFFF_FFFF_FFFF_FFFF
