"""shim/user_lookup.py: an image's USER against its own /etc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import Code, CrispError
from shim.user_lookup import User, parse_group, parse_passwd, resolve

PASSWD = "root:x:0:0::/root:/bin/sh\nbroken line\nwww:x:33:34::/:/bin/sh\n+nis\n"
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
        ("", User(0, 0, [0])),
        ("0", User(0, 0, [0])),
        ("www", User(33, 34, [4, 34])),
        ("33", User(33, 34, [4, 34])),
        ("33:50", User(33, 50, [4, 50])),
        ("www:staff", User(33, 50, [4, 50])),
        ("1000", User(1000, 0, [0])),
        ("1000:1000", User(1000, 1000, [1000])),
        ("www:", User(33, 34, [4, 34])),
    ],
)
def test_forms(root: int, user: str, expected: User) -> None:
    assert resolve(root, user, None, ()) == expected


def test_group_of_the_pod_goes_first(root: int) -> None:
    assert resolve(root, "www:staff", 9, [7]) == User(33, 9, [4, 7, 9])


def test_strict_ignores_the_image(root: int) -> None:
    assert resolve(root, "www", None, [7], "strict") == User(33, 34, [7, 34])


@pytest.mark.parametrize(
    ("user", "complaint"),
    [
        ("nobody", "no user 'nobody' in /etc/passwd"),
        ("www:nogroup", "no group 'nogroup' in /etc/group"),
        ("4294967295", "not a user or group id"),
        ("1:99999999999", "not a user or group id"),
    ],
)
def test_unknown_names(root: int, user: str, complaint: str) -> None:
    with pytest.raises(CrispError, match=complaint) as caught:
        resolve(root, user, None, ())
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_image_without_etc(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    assert resolve(fd, "5:6", None, [8]) == User(5, 6, [6, 8])
    os.close(fd)


def test_links_do_not_lead_out_of_the_image(tmp_path: Path) -> None:
    (tmp_path / "image/etc").mkdir(parents=True)
    (tmp_path / "outside").write_text("evil:x:0:0::/:/\n")
    (tmp_path / "image/etc/passwd").symlink_to(tmp_path / "outside")
    fd = os.open(tmp_path / "image", os.O_PATH)
    with pytest.raises(CrispError):
        resolve(fd, "evil", None, ())
    os.close(fd)


@given(st.binary(max_size=200))
def test_any_file(text: bytes) -> None:
    parse_passwd(text)
    parse_group(text)
