from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagesvc.limits import MAX_NAME_BYTES
from imagesvc.tar.header import TarError
from imagesvc.tar.tar_stream import Data, Entry, Tail, TarReader
from tests.images.image_builder import Member, directory, hardlink, symlink, tar


def read(archive: bytes, step: int = 0) -> tuple[list[tuple[Entry, bytes]], bytes]:
    """All entries with their content; and every byte of the archive again, put together from the events."""
    reader = TarReader()
    entries: list[tuple[Entry, bytes]] = []
    again = bytearray()
    step = step or len(archive) or 1
    for start in range(0, len(archive), step):
        reader.receive_data(archive[start : start + step])
        while (event := reader.next_event()) is not None:
            if isinstance(event, Entry):
                entries.append((event, b""))
                again += event.raw
            elif isinstance(event, Data):
                entries[-1] = (entries[-1][0], entries[-1][1] + bytes(event.view))
                again += event.view
            else:
                assert isinstance(event, Tail)
                again += event.raw
    reader.close()
    return entries, bytes(again)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=150).filter(
    lambda name: name.strip("/") and len(name.encode()) < MAX_NAME_BYTES
)
members = st.builds(
    Member,
    name=names,
    data=st.binary(max_size=1500),
    mode=st.integers(0, 0o7777),
    uid=st.one_of(st.integers(0, 0o7777777), st.integers(0, 2**31)),
    gid=st.integers(0, 2**31),
    mtime=st.integers(0, 2**33),
    xattrs=st.dictionaries(
        st.sampled_from(["user.a", "security.capability"]),
        st.binary(min_size=1, max_size=30).map(lambda value: value.decode("latin-1").encode()),
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(members, max_size=5), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.integers(1, 2000))
def test_what_tarfile_writes_is_read_back(wanted: list[Member], form: int, step: int) -> None:
    archive = tar(wanted, form)
    found, again = read(archive, step)
    assert again == archive
    assert len(found) == len(wanted)
    for (entry, content), member in zip(found, wanted, strict=True):
        assert entry.name.rstrip(b"/") == member.name.encode().rstrip(b"/")
        if not member.name.endswith("/"):
            assert content == member.data
        assert (entry.mode, entry.uid, entry.gid) == (member.mode, member.uid, member.gid)
        assert entry.mtime == int(member.mtime) * 10**9
        if form == tarfile.PAX_FORMAT:
            assert entry.xattrs == {name.encode(): value for name, value in member.xattrs.items()}


def test_every_type_byte_by_byte() -> None:
    wanted = [
        directory("d/", 0o1777),
        Member("d/f", b"x" * 513),
        symlink("d/s", "t" * 200),
        hardlink("d/h", "d/f"),
        Member("d/c", type=tarfile.CHRTYPE, device=(1, 3)),
        Member("d/b", type=tarfile.BLKTYPE, device=(259, 300)),
        Member("d/p", type=tarfile.FIFOTYPE),
        Member("n" * 300, b"long"),
    ]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        archive = tar(wanted, form)
        whole, slow = read(archive), read(archive, 1)
        assert slow[1] == whole[1] == archive
        assert [(e.name, e.type, e.link, e.major, e.minor, c) for e, c in slow[0]] == [
            (e.name, e.type, e.link, e.major, e.minor, c) for e, c in whole[0]
        ]
        assert [e.type for e, _ in whole[0]] == [b"5", b"0", b"2", b"1", b"3", b"4", b"6", b"0"]
        assert whole[0][5][0].major == 259


@pytest.mark.parametrize("form", ["gnu", "posix", "pax-0.0", "pax-0.1", "pax-1.0"])
def test_sparse_files_of_gnu_tar(tmp_path: Path, form: str) -> None:
    file = tmp_path / "sparse"
    with file.open("wb") as out:
        for i in range(30):
            out.seek(i * 200_000)
            out.write(bytes([i + 1]) * 5000)
        out.truncate(30 * 200_000 + 12345)
    options = ["--format", "gnu"] if form == "gnu" else ["--format", "posix"]
    if form.startswith("pax-"):
        options.append(f"--sparse-version={form[4:]}")
    archive = subprocess.run(
        ["tar", "-C", tmp_path, *options, "--sparse", "-cf", "-", "sparse"], capture_output=True, check=True
    ).stdout
    if len(archive) > 5_000_000:
        pytest.skip("this file system keeps no holes")
    for step in (0, 700):
        ((entry, content),), again = read(archive, step)
        assert again == archive
        assert entry.name == b"sparse"
        assert entry.segments is not None
        rebuilt = bytearray(entry.size)
        for offset, length in entry.segments:
            rebuilt[offset : offset + length] = content[:length]
            content = content[length:]
        assert rebuilt == file.read_bytes()


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_text("x")
    for form in ("gnu", "ustar", "posix"):
        archive = subprocess.run(
            ["tar", "-C", tmp_path, "--format", form, "-cf", "-", "."], capture_output=True, check=True
        ).stdout
        assert b"./caf\xe9" in [entry.name for entry, _ in read(archive)[0]]


def test_an_archive_may_end_without_zero_blocks() -> None:
    archive = tar([Member("a", b"x")]).rstrip(b"\0")
    archive += bytes(-len(archive) % 512)
    assert [entry.name for entry, _ in read(archive)[0]] == [b"a"]
    assert read(b"")[0] == []


def broken() -> dict[str, bytes]:
    good = tar([Member("a", b"x" * 2000)])
    return {
        "cut in data": good[:1500],
        "cut in header": good[:300],
        "checksum": b"b" + good[1:],
        "no tar": b"PK\3\4" + bytes(range(256)) * 4,
        "zero block between": good[:512] + bytes(2048) + bytes(512) + tar([Member("b")])[:512],
        "unknown type": _with(good, 156, b"Z"),
        "bad number": _with(good, 124, b"99999999999\0"),
        "huge metadata": _with(_with(good, 156, b"L"), 124, b"77777777777\0"),
        "pax without length": tar([Member("b" * 200)]).replace(b"path=", b"pathx", 1),
    }


def _with(archive: bytes, offset: int, value: bytes) -> bytes:
    block = bytearray(archive[:512])
    block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + archive[512:]


@pytest.mark.parametrize("case", broken())
def test_broken_archives(case: str) -> None:
    with pytest.raises(TarError):
        read(broken()[case])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_never_gets_past_the_reader_as_another_error(data: Any) -> None:
    archive = bytearray(tar([directory("d/"), Member("d/f", b"x" * 600), Member("n" * 200, b"y", xattrs={"user.a": b"1"})]))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(archive) - 1))
        archive[position] = data.draw(st.integers(0, 255))
    try:
        read(bytes(archive[: data.draw(st.integers(0, len(archive)))]))
    except TarError:
        pass


def test_global_records_are_not_applied() -> None:
    """As Go reads: a scanner must see what the node sees."""
    out = io.BytesIO()
    records = {"path": "other", "uid": "7", "SCHILY.xattr.user.a": "b", "linkpath": "x", "size": "1", "mtime": "5"}
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers=records) as archive:
        info = tarfile.TarInfo("name")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    reader = TarReader()
    reader.receive_data(out.getvalue())
    entry = reader.next_event()
    assert isinstance(entry, Entry)
    assert (entry.name, entry.uid, entry.xattrs, entry.size, entry.mtime) == (b"name", 0, {}, 3, 0)


def _pax(kind: bytes, *records: tuple[bytes, bytes]) -> bytes:
    """An extension header as it is, whatever sense its records make."""
    body = b""
    for keyword, value in records:
        rest = b" " + keyword + b"=" + value + b"\n"
        length = next(n for n in range(len(rest) + 1, len(rest) + 9) if n == len(rest) + len(str(n)))
        body += str(length).encode() + rest
    return _extension(kind, body)


def _extension(kind: bytes, body: bytes) -> bytes:
    header = _with(_with(tar([Member("h")])[:512], 156, kind), 124, b"%011o\0" % len(body))
    return header + body + bytes(-len(body) % 512)


_FILE = tar([Member("seen", b"abc")], tarfile.GNU_FORMAT)


def differing() -> dict[str, tuple[bytes, list[tuple[bytes, bytes]]]]:
    """Archives that lax readers read otherwise than Go's; and the names and contents that Go's shows."""
    inner = tar([Member("hidden", b"x")])[:1024]
    outer = tar([Member("seen", inner)], tarfile.USTAR_FORMAT)
    star = _with(_with(_with(_FILE, 257, b"ustar\x0000"), 345, b"p" * 131 + b"00000000000 "), 508, b"tar\0")
    sparse = ((b"GNU.sparse.name", b"hidden"), (b"GNU.sparse.realsize", b"9"))
    return {
        "two headers: the last alone": (
            _pax(b"x", (b"path", b"hidden")) + _pax(b"x", (b"mtime", b"1")) + _FILE,
            [(b"seen", b"abc")],
        ),
        "a global one ends what stood before": (
            _pax(b"x", (b"path", b"hidden")) + _extension(b"L", b"hidden\0") + _pax(b"g", (b"a", b"b")) + _FILE,
            [(b"seen", b"abc")],
        ),
        "GNU's name before that of PAX": (
            _extension(b"L", b"seen\0") + _pax(b"x", (b"path", b"hidden")) + _FILE,
            [(b"seen", b"abc")],
        ),
        "GNU's link before that of PAX": (
            _extension(b"K", b"seen\0") + _pax(b"x", (b"linkpath", b"hidden")) + _FILE,
            [(b"seen", b"abc")],
        ),
        "a size after a NUL": (_with(outer, 124, b"\0%010o\0" % len(inner)), [(b"seen", inner)]),
        "a prefix in GNU's header": (_with(_FILE, 345, b"where/it/is/seen"), [(b"where/it/is/seen/seen", b"abc")]),
        "times in GNU's header": (_with(_FILE, 345, b"00000000001\x0000000000001\0"), [(b"seen", b"abc")]),
        "star's prefix": (star, [(b"p" * 131 + b"/seen", b"abc")]),
        "sparse of an unknown version": (
            _pax(b"x", (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"7"), *sparse) + _FILE,
            [(b"seen", b"abc")],
        ),
        "sparse without a map": (_pax(b"x", *sparse) + _FILE, [(b"seen", b"abc")]),
    }


@pytest.mark.parametrize("case", differing())
def test_what_a_scanner_sees_is_what_the_node_has(case: str) -> None:
    archive, wanted = differing()[case]
    for step in (0, 100):
        found, again = read(archive, step)
        assert again == archive
        assert [(entry.name, content) for entry, content in found] == wanted
        assert not any(entry.link == b"hidden" for entry, _content in found)


@pytest.mark.parametrize("kind", [b"X", b"V"])
def test_types_whose_data_scanners_read_over_are_refused(kind: bytes) -> None:
    """Data that is no file to them must not be headers here."""
    inner = tar([Member("hidden", b"x")])[:1024]
    with pytest.raises(TarError, match="unknown type"):
        read(_extension(kind, inner) + _FILE)


@pytest.mark.parametrize("text", [b"0o000000004\0", b"+0000000004\0", b"0_000000004\0", b"-0000000004\0", b"\t0000000004\0"])
def test_numbers_are_octal_digits(text: bytes) -> None:
    with pytest.raises(TarError, match="octal"):
        read(_with(_FILE, 124, text))
