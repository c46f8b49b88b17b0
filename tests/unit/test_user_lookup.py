"""shim/user_lookup.py: an image's USER against its own /etc."""

from __future__ import annotations

import os
import socket
import stat
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import Code, CrispError
from shim.user_lookup import MAX_FILE, User, parse_group, parse_passwd, resolve

PASSWD = "root:x:0:0::/root:/bin/sh\nbroken line\nwww:x:33:34::/srv/www:/bin/sh\n+nis\nhuge:x:99999999999:1::/:/\n"
GROUP = "root:x:0:\nwww:x:34:\nadm:x:4:www,other\nstaff:x:50:other\nbad:x:y:www\n"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", User(0, 0, [0], "/root")),
        ("0", User(0, 0, [0], "/root")),
        ("www", User(33, 34, [4, 34], "/srv/www")),
        ("33", User(33, 34, [4, 34], "/srv/www")),
        ("33:50", User(33, 50, [4, 50], "/srv/www")),
        ("www:staff", User(33, 50, [4, 50], "/srv/www")),
        ("1000", User(1000, 0, [0], "/")),
        ("1000:1000", User(1000, 1000, [1000], "/")),
        ("www:", User(33, 34, [4, 34], "/srv/www")),
    ],
)
def test_forms(root: int, user: str, expected: User) -> None:
    assert resolve(root, user, None, ()) == expected


def test_group_of_the_pod_goes_first(root: int) -> None:
    assert resolve(root, "www:staff", 9, [7]) == User(33, 9, [4, 7, 9], "/srv/www")


def test_strict_ignores_the_image(root: int) -> None:
    assert resolve(root, "www", None, [7], "strict") == User(33, 34, [7, 34], "/srv/www")


@pytest.mark.parametrize(
    ("user", "complaint"),
    [
        ("nobody", "no user 'nobody' in /etc/passwd"),
        ("www:nogroup", "no group 'nogroup' in /etc/group"),
        ("4294967295", "not a user or group id"),
        ("9" * 5000, "not a user or group id"),
        ("huge", "no user 'huge' in /etc/passwd"),
        ("1:99999999999", "not a user or group id"),
    ],
)
def test_unknown_names(root: int, user: str, complaint: str) -> None:
    with pytest.raises(CrispError, match=complaint) as caught:
        resolve(root, user, None, ())
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_image_without_etc(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    assert resolve(fd, "5:6", None, [8]) == User(5, 6, [6, 8], "/")
    os.close(fd)


def test_links_do_not_lead_out_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "image/etc").mkdir(parents=True)
    (tmp_path / "outside").write_text("evil:x:0:0::/:/\n")
    (tmp_path / "image/etc/passwd").symlink_to(tmp_path / "outside")
    fd = os.open(tmp_path / "image", os.O_PATH)
    with pytest.raises(CrispError):
        resolve(fd, "evil", None, ())
    os.close(fd)


@pytest.mark.parametrize("kind", ["device", "fifo", "directory", "socket"])
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    """A device node in an image is the host's device: to open a watchdog or a tape is to act on it."""
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc/passwd"
    if kind == "device":
        if os.geteuid() != 0:
            pytest.skip("needs root")
        os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 5))  # /dev/zero
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    accessed = path.stat().st_atime_ns
    fd = os.open(tmp_path, os.O_PATH)
    with pytest.raises(CrispError, match="/etc/passwd of the image is no regular file") as caught:
        resolve(fd, "root", None, ())
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert path.stat().st_atime_ns == accessed
    os.close(fd)


def test_more_groups_than_fit_into_the_messages_about_a_container(root: int, tmp_path: Path) -> None:
    lines = "".join(f"g{number}:x:{number}:www\n" for number in range(1000, 11000))
    (tmp_path / "etc/group").write_text(lines)
    with pytest.raises(CrispError, match="is in 10001 groups, and can be in 4096"):
        resolve(root, "www", None, ())
    assert len(resolve(root, "www", None, range(1000, 5095), "strict").groups) == 4096


@given(st.binary(max_size=200))
def test_any_file(text: bytes) -> None:
    list(parse_passwd(text))
    list(parse_group(text))


@pytest.mark.parametrize(
    "line", ["a::0:0\n", "a:x:0:" + "," * 1000, "a:x:0:0" + ":" * 1000], ids=["short", "members", "fields"]
)
def test_memory_for_a_hostile_file(root: int, tmp_path: Path, line: str) -> None:
    """It is the shim's child that reads it, outside the pod's limits: some times the file's size, not a hundred times."""
    size = 4 << 20
    text = line * (size // len(line))
    (tmp_path / "etc/passwd").write_text(text)
    (tmp_path / "etc/group").write_text(text)
    tracemalloc.start()
    try:
        resolve(root, "0:0", None, ())
        assert tracemalloc.get_traced_memory()[1] < MAX_FILE + 4 * size
    finally:
        tracemalloc.stop()
