"""What is changed in CRIU's images."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.errors import Code, CrispError
from runtime.pods import criu_images

HEAD = bytes.fromhex("1943565467b2ca54")
"""As CRIU 3.17 begins utsns-10.img."""


def image(nodename: bytes, domainname: bytes = b"(none)") -> bytes:
    entry = b"\x0a" + bytes((len(nodename),)) + nodename + b"\x12" + bytes((len(domainname),)) + domainname
    return HEAD + struct.pack("<I", len(entry)) + entry


def test_the_host_name_alone_is_changed(tmp_path: Path) -> None:
    (tmp_path / "utsns-10.img").write_bytes(image(b"before"))
    (tmp_path / "other.img").write_bytes(b"untouched")
    criu_images.set_hostname(tmp_path, "after-that")
    assert (tmp_path / "utsns-10.img").read_bytes() == image(b"after-that")
    assert (tmp_path / "other.img").read_bytes() == b"untouched"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD,
        HEAD + b"\1\0\0\0",
        image(b"x")[:-1],
        image(b"x") + b"y",
        HEAD + b"\2\0\0\0\x0a\xff",
        HEAD + b"\2\0\0\0\x1a\0",
    ],
)
def test_other_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "utsns-10.img").write_bytes(data)
    with pytest.raises(CrispError, match=r"utsns-10\.img is not in CRIU's form") as caught:
        criu_images.set_hostname(tmp_path, "name")
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert (tmp_path / "utsns-10.img").read_bytes() == data


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        again = criu_images.renamed(data, b"name")
    except (ValueError, IndexError, struct.error):
        return
    assert again[:8] == data[:8]
    assert criu_images.renamed(again, b"name") == again


def test_ipc_objects_go_and_settings_stay(tmp_path: Path) -> None:
    for kind in ("shm", "msg", "sem", "var"):
        (tmp_path / f"ipcns-{kind}-9.img").write_bytes(HEAD + b"entries")
    criu_images.empty_ipc(tmp_path)
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {
        "ipcns-shm-9.img": 8,
        "ipcns-msg-9.img": 8,
        "ipcns-sem-9.img": 8,
        "ipcns-var-9.img": 15,
    }
