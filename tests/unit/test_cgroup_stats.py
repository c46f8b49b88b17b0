"""kernel/cgroup_stats.py and cgroup_details.py: captured files of v1 and v2."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kernel import cgroup_details, cgroup_stats
from kernel.cgroups import Hierarchies, Mode

PSI = b"""some avg10=1.53 avg60=0.87 avg300=0.20 total=58761459
full avg10=0.00 avg60=0.13 avg300=0.96 total=58758
"""

V2_FILES = {
    "cpu.stat": "usage_usec 5025\nuser_usec 4000\nsystem_usec 1025\nnr_periods 7\nnr_throttled 2\nthrottled_usec 900\n",
    "cpu.max": "50000 100000\n",
    "cpu.weight": "39\n",
    "memory.current": "40960000\n",
    "memory.stat": "anon 20480000\nfile 16384000\nkernel 811008\nfile_mapped 4096\ninactive_file 8192000\n"
    "active_file 8192000\npgfault 1234\npgmajfault 5\n",
    "memory.max": "67108864\n",
    "memory.low": "0\n",
    "memory.peak": "50000000\n",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 0\noom_kill 0\n",
    "memory.swap.current": "4096\n",
    "memory.swap.max": "max\n",
    "io.stat": "254:0 rbytes=8192 wbytes=4096 rios=2 wios=1 dbytes=0 dios=0\n7:1 \n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.pressure": PSI.decode(),
    "memory.pressure": PSI.decode(),
    "io.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
}

V1_FILES = {
    "cpuacct/cpuacct.usage": "5025000\n",
    "cpuacct/cpuacct.usage_user": "4000000\n",
    "cpuacct/cpuacct.usage_sys": "1025000\n",
    "cpu/cpu.stat": "nr_periods 7\nnr_throttled 2\nthrottled_time 900000\n",
    "cpu/cpu.shares": "512\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "cpu/cpu.cfs_quota_us": "-1\n",
    "memory/memory.usage_in_bytes": "40960000\n",
    "memory/memory.stat": "cache 1\nrss 2\nhierarchical_memory_limit 67108864\nhierarchical_memsw_limit 134217728\n"
    "total_cache 16384000\ntotal_rss 20480000\ntotal_mapped_file 4096\ntotal_swap 4096\ntotal_pgfault 1234\n"
    "total_pgmajfault 5\ntotal_inactive_file 8192000\ntotal_active_file 8192000\n",
    "memory/memory.limit_in_bytes": "67108864\n",
    "memory/memory.soft_limit_in_bytes": "9223372036854771712\n",
    "memory/memory.memsw.limit_in_bytes": "134217728\n",
    "memory/memory.max_usage_in_bytes": "50000000\n",
    "memory/memory.failcnt": "3\n",
    "memory/memory.kmem.usage_in_bytes": "811008\n",
    "blkio/blkio.throttle.io_service_bytes_recursive": "254:0 Read 8192\n254:0 Write 4096\n254:0 Total 12288\nTotal 12288\n",
    "blkio/blkio.throttle.io_serviced_recursive": "254:0 Read 2\n254:0 Write 1\n254:0 Total 3\nTotal 3\n",
    "pids/pids.current": "3\n",
    "pids/pids.max": "max\n",
}


def make(directory: Path, files: dict[str, str], group: str) -> None:
    for name, text in files.items():
        controller, _, leaf = name.rpartition("/")
        path = directory / controller / group / leaf
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def v2(directory: Path) -> Hierarchies:
    return Hierarchies(Mode.V2, {name: str(directory) for name in ("cpu", "memory", "io", "pids")}, str(directory))


def v1(directory: Path) -> Hierarchies:
    names = ("cpu", "cpuacct", "memory", "blkio", "pids", "freezer")
    return Hierarchies(Mode.V1, {name: str(directory / name) for name in names}, "")


def test_both_versions_say_the_same(tmp_path: Path) -> None:
    make(tmp_path / "v2", V2_FILES, "pod/c")
    make(tmp_path / "v1", V1_FILES, "pod/c")
    new = cgroup_stats.read_usage(v2(tmp_path / "v2").group("pod/c"))
    old = cgroup_stats.read_usage(v1(tmp_path / "v1").group("pod/c"), str(tmp_path / "v2/pod/c"))
    assert new.memory is not None and old.memory is not None
    assert new.memory.swap_limit is None
    assert old.memory.swap_limit == 67108864, "v1's own limit is for memory and swap together"
    assert new._replace(memory=new.memory._replace(swap_limit=67108864)) == old
    assert new.cpu == 5_025_000
    assert (new.memory.usage, new.memory.working_set, new.memory.rss) == (40960000, 32768000, 20480000)
    assert (new.memory.page_faults, new.memory.major_page_faults, new.memory.limit) == (1234, 5, 67108864)


def test_details_of_both_versions(tmp_path: Path) -> None:
    make(tmp_path / "v2", V2_FILES, "c")
    make(tmp_path / "v1", V1_FILES, "c")
    new = cgroup_details.read_details(v2(tmp_path / "v2").group("c"))
    old = cgroup_details.read_details(v1(tmp_path / "v1").group("c"))
    assert new._replace(limits=old.limits) == old
    assert new.io == [cgroup_details.DeviceIo(254, 0, 8192, 4096, 2, 1)]
    assert new.cpu == cgroup_details.Cpu(4_000_000, 1_025_000, 7, 2, 900_000)
    assert (new.limits.cpu_quota, new.limits.cpu_period, new.limits.cpu_shares) == (50000, 100000, 998)
    assert (old.limits.cpu_quota, old.limits.cpu_period, old.limits.cpu_shares) == (None, 100000, 512)
    assert old.limits.memory_reservation is None
    assert new.limits.threads is old.limits.threads is None


def test_a_group_that_is_gone_says_nothing(tmp_path: Path) -> None:
    for hierarchies in (v1(tmp_path), v2(tmp_path)):
        assert cgroup_stats.read_usage(hierarchies.group("gone")) == cgroup_stats.Usage(None, None, None, None, None)
        assert cgroup_details.read_details(hierarchies.group("gone")).threads is None


def test_pressure() -> None:
    found = cgroup_stats.parse_pressure(PSI)
    assert found is not None
    assert found.some == cgroup_stats.Stall(58761459, 1.53, 0.87, 0.2)
    assert found.full == cgroup_stats.Stall(58758, 0.0, 0.13, 0.96)
    # Before Linux 5.13 the CPU has no `full` line.
    assert cgroup_stats.parse_pressure(PSI.splitlines()[0]) == (found.some, cgroup_stats.Stall(0, 0.0, 0.0, 0.0))
    assert cgroup_stats.parse_pressure(b"") is None


def test_numbers() -> None:
    assert cgroup_stats.number(b"12\n") == 12
    assert [cgroup_stats.number(text) for text in (b"", b"max\n", b"-1\n", b"9223372036854771712\n")] == [None] * 4


@given(st.binary())
def test_no_text_breaks_a_parser(text: bytes) -> None:
    cgroup_stats.flat(text)
    cgroup_stats.number(text)
    cgroup_stats.parse_pressure(text)
