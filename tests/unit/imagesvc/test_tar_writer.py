from __future__ import annotations

import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from imagesvc.tar import tar_writer
from imagesvc.tar.tar_stream import Entry, TarReader

names = st.binary(min_size=1, max_size=300).map(lambda b: b.replace(b"\0", b"_").replace(b"/", b"_"))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    entry = Entry()
    entry.name = draw(names)
    entry.type = draw(st.sampled_from([b"0", b"2", b"3", b"5", b"6"]))
    entry.mode = draw(st.integers(0, 0o7777))
    entry.uid, entry.gid = draw(st.integers(0, 2**32 - 2)), draw(st.integers(0, 2**32 - 2))
    entry.mtime = draw(st.integers(-(2**60), 2**62))
    if entry.type == b"2":
        entry.link = draw(names)
    if entry.type == b"3":
        entry.major, entry.minor = draw(st.integers(0, 4095)), draw(st.integers(0, 2**20 - 1))
    if entry.type == b"0":
        entry.size = draw(st.sampled_from([0, 1, 8 << 30]))
    entry.xattrs = draw(st.dictionaries(st.sampled_from([b"user.a", b"user.b"]), st.binary(max_size=90), max_size=2))
    return entry


@given(entries())
def test_what_is_written_is_read_back(entry: Entry) -> None:
    raw = tar_writer.header(entry)
    assert len(raw) % 512 == 0
    reader = TarReader()
    reader.receive_data(raw)
    found = reader.next_event()
    assert isinstance(found, Entry)
    for name in ("name", "link", "type", "mode", "uid", "gid", "mtime", "size", "major", "minor", "xattrs"):
        assert getattr(found, name) == getattr(entry, name), name
    assert tar_writer.header(entry) == raw


def test_tarfile_reads_it() -> None:
    entry = tar_writer.file_entry(b"d/" + b"x" * 150, 3)
    archive = tar_writer.header(tar_writer.directory_entry(b"d/")) + tar_writer.header(entry)
    archive += b"abc" + tar_writer.padding(3) + tar_writer.END
    with tarfile.open(fileobj=io.BytesIO(archive)) as read:
        assert read.getnames() == ["d", "d/" + "x" * 150]
        assert read.extractfile(read.getmembers()[1]).read() == b"abc"  # type: ignore[union-attr]
