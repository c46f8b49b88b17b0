"""kernel/mounts.py: mountinfo as the kernel writes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel import mounts

TEXT = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 27 0:33 /sub\040dir /mnt/with\040space\011tab rw,nosuid shared:5 master:2 propagate_from:1 - tmpfs none rw,size=4k
31 27 0:34 / /mnt/slave ro master:7 - overlay overlay rw,lowerdir=/a:/b
32 27 0:35 / /mnt/unb rw unbindable - tmpfs back\134slash rw
33 31 0:36 / /mnt/slave rw - tmpfs over rw
"""


def test_fields() -> None:
    found = mounts.parse(TEXT)
    assert [entry.mount_id for entry in found] == [22, 27, 30, 31, 32, 33]
    third = found[2]
    assert third.mount_point == b"/mnt/with space\ttab"
    assert third.root == b"/sub dir"
    assert (third.shared, third.master, third.fstype, third.source) == (5, 2, b"tmpfs", b"none")
    assert third.super_options == (b"rw", b"size=4k")
    assert found[4].source == b"back\\slash"


def test_propagation() -> None:
    assert [e.propagation for e in mounts.parse(TEXT)] == ["private", "shared", "shared", "slave", "unbindable", "private"]


def test_holding_takes_the_innermost_and_the_latest() -> None:
    found = mounts.parse(TEXT)
    assert mounts.holding("/mnt/slave/x", found).mount_id == 33
    assert mounts.holding("/mnt/slavery", found).mount_id == 27
    assert mounts.holding("/proc", found).mount_id == 22
    assert mounts.holding("/", found).mount_id == 27


def test_what_a_later_mount_on_a_parent_hides_is_not_found() -> None:
    later = b"40 27 0:40 / /mnt rw shared:9 - tmpfs hider rw\n41 40 0:41 / /mnt/slave/y rw - tmpfs inner rw\n"
    hidden = mounts.parse(TEXT + later)
    assert mounts.holding("/mnt/slave/x", hidden).mount_id == 40
    assert mounts.holding("/mnt/slave/y", hidden).mount_id == 41
    assert mounts.holding("/mnt/with space\ttab", hidden).propagation == "shared"


def test_a_changed_root_that_is_no_mount() -> None:
    found = mounts.parse(b"50 3 0:3 / /proc rw - proc proc rw\n51 50 0:4 / /proc/sys ro - proc proc rw\n")
    assert mounts.holding("/proc/sys/net", found).mount_id == 51
    with pytest.raises(FileNotFoundError):
        mounts.holding("/etc", found)


def test_below_is_in_the_order_of_unmounting() -> None:
    found = mounts.parse(TEXT)
    assert [entry.mount_id for entry in mounts.below("/mnt/", found)] == [33, 32, 31, 30]
    assert [entry.mount_id for entry in mounts.below("/mnt/slave", found)] == [33, 31]


@pytest.mark.parametrize("line", [b"", b"1 2 3", b"a b c d e f - x y z", b"1 2 0:1 / / rw shared:1"])
def test_malformed_lines_are_skipped(line: bytes) -> None:
    assert mounts.parse_line(line) is None


@given(st.binary(max_size=120))
def test_any_bytes(text: bytes) -> None:
    mounts.parse(text)


@given(st.binary(max_size=40))
def test_unescape_undoes_the_kernels_escapes(name: bytes) -> None:
    """The kernel escapes space, tab, newline and backslash (seq_path with " \\t\\n\\\\")."""
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes((byte,)) for byte in name)
    assert mounts.unescape(escaped) == name


def test_volatile_mark_is_removed_as_the_kernel_makes_it(tmp_path: Path) -> None:
    (tmp_path / "work/incompat/volatile").mkdir(parents=True)
    (tmp_path / "work/incompat/volatile/dirty").touch()
    for _ in range(2):
        mounts.clear_volatile_mark(str(tmp_path))
        assert list(tmp_path.rglob("*")) == [tmp_path / "work"]


def test_own_mountinfo() -> None:
    own = mounts.mountinfo()
    assert mounts.holding(os.path.realpath("/"), own).mount_point == b"/"
