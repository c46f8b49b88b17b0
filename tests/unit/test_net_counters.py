"""kernel/net_counters.py: a captured /proc/net/dev."""

from __future__ import annotations

from kernel import net_counters

DEV = b"""Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1084640    4112    0    0    0     0          0         0  1084640    4112    0    0    0     0       0          0
  eth0:98765432   65432    1    2    0     0          0         0  1234567    7654    3    4    0     0       0          0
"""


def test_parse() -> None:
    assert net_counters.parse(DEV) == [net_counters.Interface("eth0", 98765432, 65432, 1, 2, 1234567, 7654, 3, 4)]
    assert net_counters.parse(b"") == []


def test_what_is_no_namespace_is_left_out(tmp_path: object) -> None:
    assert net_counters.read_many([f"{tmp_path}/gone"]) == {}
    assert net_counters.read_many([]) == {}
