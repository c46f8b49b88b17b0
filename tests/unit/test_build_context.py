"""The context of a build and its Containerfile: where they come from, and what is none."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from pathlib import Path

import pytest
import zstandard

from proto.errors import CrispError
from runtime.build.context import Context, open_context

pytestmark = pytest.mark.root


def opened(argument: str | Path, file: str | None = None, stdin: bytes = b"", scratch: Path | None = None) -> Context:
    return open_context(str(argument), file, io.BytesIO(stdin), str(scratch or "/nonexistent"))


def archive(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_a_directory(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM a")
    found = opened(tmp_path)
    assert (found.root, found.text, found.name) == (str(tmp_path), b"FROM a", "Dockerfile")
    (tmp_path / "Containerfile").write_text("FROM b")
    assert opened(tmp_path).text == b"FROM b"
    other = tmp_path / "sub"
    other.mkdir()
    (other / "x.txt").write_text("FROM c")
    found = opened(tmp_path, str(other / "x.txt"))
    assert (found.root, found.text, found.name) == (str(tmp_path), b"FROM c", str(other / "x.txt"))
    found = opened(other, "-", b"FROM d")
    assert (found.root, found.text, found.name) == (str(other), b"FROM d", "Containerfile")


def test_ignore_files(tmp_path: Path) -> None:
    """The nearest to the Containerfile counts, and of two names podman's."""
    file = tmp_path / "Dockerfile"
    file.write_text("FROM a")
    assert not opened(tmp_path).rules
    for number, name in enumerate(
        (".dockerignore", ".containerignore", "Dockerfile.dockerignore", "Dockerfile.containerignore")
    ):
        (tmp_path / name).write_text(f"only{number}")
        assert opened(tmp_path).rules.ignores(f"only{number}")
        assert not opened(tmp_path).rules.ignores(f"only{number - 1}")
    (tmp_path / "other").write_text("FROM a")
    assert opened(tmp_path, str(tmp_path / "other")).rules.ignores("only1")
    assert opened(tmp_path, "-", b"FROM a").rules.ignores("only1")
    (tmp_path / ".containerignore").write_text("a\nb[")
    with pytest.raises(CrispError, match=r"\.containerignore:2: 'b\['"):
        opened(tmp_path, "-", b"FROM a")


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress, lambda data: gzip.compress(data) + bytes(512)],
    ids=["plain", "gzip", "bzip2", "xz", "zstd", "padded"],
)
def test_an_archive(tmp_path: Path, compress: type[bytes]) -> None:
    content = archive(Dockerfile=b"FROM a", src__main_c=b"main", _dockerignore=b"x")
    found = opened("-", None, compress(content), tmp_path)
    assert (found.root, found.text, found.name) == (str(tmp_path), b"FROM a", "Dockerfile")
    assert (tmp_path / "src/main.c").read_text() == "main"
    assert found.rules.ignores("x")


def test_a_file_in_an_archive(tmp_path: Path) -> None:
    content = archive(sub__File=b"FROM x", Dockerfile=b"FROM a")
    assert opened("-", "sub/File", content, tmp_path).text == b"FROM x"


def test_a_containerfile_alone(tmp_path: Path) -> None:
    for text in (b"FROM a\nRUN b", b"FROM a", b"", b"x" * 100_000):
        found = opened("-", None, text, tmp_path)
        assert (found.root, found.text, found.name) == ("", text, "Containerfile")
    assert os.listdir(tmp_path) == []


def unsafe(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("Dockerfile")
        tar.addfile(info)
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info)
        info = tarfile.TarInfo(name + "/file")
        tar.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (unsafe("../x"), "would lead out of the layer"),
        (unsafe("null", tarfile.CHRTYPE), "'null' is a device, which a context does not have"),
        (unsafe("out", tarfile.SYMTYPE, "/etc"), "/out: it is there, and no directory"),
        (archive(Dockerfile=b"x" * 9000)[:3000], "the archive ends in the middle of an entry"),
        (gzip.compress(archive(Dockerfile=os.urandom(9000)))[:-500], "the gzip data ends too early"),
        (archive(other=b""), "there is no Containerfile and no Dockerfile in the context: name one by -f FILE"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(CrispError) as caught:
        opened("-", None, content, tmp_path)
    assert said in caught.value.message


def test_a_fifo_in_an_archive(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("Dockerfile"))
        info = tarfile.TarInfo("fifo")
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
    assert opened("-", None, out.getvalue(), tmp_path).text == b""
    assert (tmp_path / "fifo").is_fifo()


@pytest.mark.parametrize("link", ["/etc/passwd", "../../../../../../etc/passwd"])
def test_a_link_in_an_archive_is_not_followed_out_of_it(tmp_path: Path, link: str) -> None:
    for name, asked in (("Dockerfile", None), ("other", "other")):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)
        place = tmp_path / name
        place.mkdir()
        with pytest.raises(CrispError, match=f"there is no Containerfile {name}"):
            opened("-", asked, out.getvalue(), place)


@pytest.mark.parametrize(
    ("argument", "file", "said"),
    [
        ("https://github.com/a/b.git", None, "is not here: crisp builds from a directory, or from an archive"),
        ("git@github.com:a/b", None, "is not here"),
        ("github.com/a/b", None, "is not here"),
        ("/nonexistent", None, "the context /nonexistent is no directory"),
        ("/etc/passwd", None, "is no directory"),
        ("-", "-", "the context and the Containerfile cannot both come from the standard input"),
        ("-", "x", "what is on the standard input is no archive, so there is no file for -f in it"),
        ("/etc", None, "there is no Containerfile and no Dockerfile in the context"),
        ("/etc", "/etc/nothing", "there is no Containerfile /etc/nothing"),
        ("/etc", "/etc", "/etc is no file"),
        ("/etc", "/dev/null", "/dev/null is no file"),
    ],
)
def test_what_is_no_context(argument: str, file: str | None, said: str) -> None:
    with pytest.raises(CrispError) as caught:
        opened(argument, file, b"FROM a")
    assert said in caught.value.message


def test_a_containerfile_has_an_end(tmp_path: Path) -> None:
    with open(tmp_path / "Dockerfile", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(CrispError, match="Dockerfile has more than 4194304 bytes"):
        opened(tmp_path)
