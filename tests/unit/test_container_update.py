"""runtime/pods/container_update.py: merging."""

from __future__ import annotations

from proto import api_pb2 as cri
from runtime.pods.container_update import merge

MIB = 1 << 20
Resources = cri.LinuxContainerResources


def test_what_is_not_given_stays() -> None:
    old = Resources(
        cpu_shares=512, cpu_quota=50000, memory_limit_in_bytes=MIB, cpuset_cpus="0", unified={"a": "1", "b": "2"}
    )
    merged = merge(old, Resources(cpu_quota=20000, unified={"b": "3"}))
    assert merged == Resources(
        cpu_shares=512, cpu_quota=20000, memory_limit_in_bytes=MIB, cpuset_cpus="0", unified={"a": "1", "b": "3"}
    )
    assert old.cpu_quota == 50000


def test_huge_pages_go_size_by_size() -> None:
    small, large = cri.HugepageLimit(page_size="2MB", limit=1), cri.HugepageLimit(page_size="1GB", limit=2)
    changed = cri.HugepageLimit(page_size="2MB", limit=5)
    merged = merge(Resources(hugepage_limits=[small, large]), Resources(hugepage_limits=[changed]))
    assert list(merged.hugepage_limits) == [large, changed]


def test_who_has_no_swap_gets_none_by_a_new_memory_limit() -> None:
    without = Resources(memory_limit_in_bytes=MIB, memory_swap_limit_in_bytes=MIB)
    assert merge(without, Resources(memory_limit_in_bytes=2 * MIB)).memory_swap_limit_in_bytes == 2 * MIB
    some = Resources(memory_limit_in_bytes=MIB, memory_swap_limit_in_bytes=4 * MIB)
    assert merge(some, Resources(memory_limit_in_bytes=2 * MIB)).memory_swap_limit_in_bytes == 4 * MIB
    unsaid = Resources(memory_limit_in_bytes=MIB)
    assert merge(unsaid, Resources(memory_limit_in_bytes=2 * MIB)).memory_swap_limit_in_bytes == 0
