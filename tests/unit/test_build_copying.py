"""COPY, ADD and WORKDIR between trees: what goes where, and that nothing leaves its tree."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard

from imagesvc.containerfile import ignore
from imagesvc.containerfile.errors import ContainerfileError
from imagesvc.containerfile.expansion import expand
from imagesvc.containerfile.instructions import Copy
from imagesvc.containerfile.parser import parse
from proto.errors import CrispError
from runtime.build import permissions
from runtime.build.copying import Copier, Fetched, Selection, Tree
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def copier() -> Iterator[Copier]:
    with Copier() as made:
        yield made


def step(text: str) -> Copy:
    found = expand(parse(f"FROM scratch\n{text}".encode(), "F").stages[0].instructions[0], {})
    assert isinstance(found, Copy)
    return found


class Lab:
    """A context with some files, and an empty image."""

    def __init__(self, copier: Copier, place: Path) -> None:
        self.copier = copier
        self.source = place / "source"
        self.root = place / "root"
        for name, content in {
            "a.txt": "A",
            "b.txt": "B",
            "script.sh": "#!/bin/sh\n",
            "src/main.c": "main",
            "src/main.o": "object",
            "src/lib/x.c": "x",
            "src/lib/x.o": "ox",
            "docs/readme.md": "read",
            "docs/secret.md": "secret",
        }.items():
            self.write(name, content)
        os.chmod(self.source / "script.sh", 0o755)
        os.chmod(self.source / "src/lib", 0o711)
        (self.source / "link").symlink_to("a.txt")
        (self.source / "src/inner").symlink_to("lib/x.c")
        self.root.mkdir()

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def select(self, text: str, rules: str = "", fetched: tuple[Fetched, ...] = ()) -> Selection:
        tree = Tree(str(self.source), "the context", ignore.parse(rules, ".dockerignore"), keep_owners=False)
        return self.copier.select(step(text), tree, fetched)

    def put(self, selection: Selection, workdir: str = "/work") -> None:
        self.copier.put(selection, str(self.root), "", workdir)

    def copy(self, text: str, rules: str = "") -> list[str]:
        """Everything that is in the image afterwards."""
        self.put(self.select(text, rules))
        return self.listed()

    def listed(self) -> list[str]:
        return sorted(
            os.path.relpath(os.path.join(parent, name), self.root)
            for parent, directories, files in os.walk(self.root)
            for name in (*directories, *files)
        )


@pytest.fixture
def lab(copier: Copier, tmp_path: Path) -> Lab:
    return Lab(copier, tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("COPY a.txt /x", ["x"]),
        ("COPY a.txt /x/", ["x", "x/a.txt"]),
        ("COPY a.txt x", ["work", "work/x"]),
        ("COPY a.txt .", ["work", "work/a.txt"]),
        ("COPY a.txt ../x/./y", ["x", "x/y"]),
        ("COPY a.txt b.txt /x/", ["x", "x/a.txt", "x/b.txt"]),
        ('COPY ["a.txt", "/x y"]', ["x y"]),
        ("COPY link /x", ["x"]),
        ("COPY link /x/", ["x", "x/link"]),
        ("COPY *.txt /x/", ["x", "x/a.txt", "x/b.txt"]),
        ("COPY ?.txt script.* /", ["a.txt", "b.txt", "script.sh"]),
        ("COPY [!a]*.txt /x/", ["x", "x/a.txt"]),  # Go says [^a], and takes ! for itself
        ("COPY [^a]*.txt /x/", ["x", "x/b.txt"]),
        ("COPY docs /x", ["x", "x/readme.md", "x/secret.md"]),
        ("COPY docs/ src/lib /x/", ["x", "x/readme.md", "x/secret.md", "x/x.c", "x/x.o"]),
        ("COPY */*.md /x/", ["x", "x/readme.md", "x/secret.md"]),
        ("COPY **/*.c /x/", ["x", "x/main.c", "x/x.c"]),
        ("COPY --exclude=*.o src /x", ["x", "x/inner", "x/lib", "x/lib/x.c", "x/lib/x.o", "x/main.c"]),
        ("COPY --exclude=**/*.o --exclude=inner src /x", ["x", "x/lib", "x/lib/x.c", "x/main.c"]),
        ("COPY --exclude=lib --exclude=!lib/x.c src /x", ["x", "x/inner", "x/lib", "x/lib/x.c", "x/main.c", "x/main.o"]),
        ("COPY --exclude=a* *.txt /x/", ["x", "x/b.txt"]),
        ("COPY --parents src/lib/x.c a.txt /x/", ["x", "x/a.txt", "x/src", "x/src/lib", "x/src/lib/x.c"]),
        ("COPY --parents ./src/./lib/*.c /x/", ["x", "x/lib", "x/lib/x.c"]),
        ("COPY --parents src/lib /x", ["x", "x/src", "x/src/lib", "x/src/lib/x.c", "x/src/lib/x.o"]),
        ("COPY --parents **/*.md /x", ["x", "x/docs", "x/docs/readme.md", "x/docs/secret.md"]),
        ("COPY <<one <<two a.txt /x/\n1\none\n2\ntwo", ["x", "x/a.txt", "x/one", "x/two"]),
        ("COPY <<one /x\n1\none", ["x"]),
        ("ADD a.txt /x", ["x"]),
    ],
)
def test_where_files_go(lab: Lab, text: str, expected: list[str]) -> None:
    assert lab.copy(text) == expected


def test_contents_modes_and_times(lab: Lab) -> None:
    os.utime(lab.source / "src/main.c", ns=(1, 1_500_000_000_123_456_789))
    lab.copy("COPY src /x")
    lab.copy("COPY script.sh /y")
    assert (lab.root / "x/main.c").read_text() == "main"
    assert (lab.root / "x/main.c").stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert stat.S_IMODE((lab.root / "x/lib").stat().st_mode) == 0o711
    assert stat.S_IMODE((lab.root / "y").stat().st_mode) == 0o755
    assert os.readlink(lab.root / "x/inner") == "lib/x.c"
    assert {path.lstat().st_uid for path in lab.root.rglob("*")} == {0}


def test_special_files_links_and_attributes(lab: Lab) -> None:
    os.link(lab.source / "src/main.c", lab.source / "src/other")
    os.mkfifo(lab.source / "src/fifo")
    os.setxattr(lab.source / "src/main.o", "user.x", b"1")
    lab.write("src/empty", "")
    lab.write("src/large", os.urandom(3 << 20))
    lab.write(os.fsdecode(b"src/\xff\xe9"), "odd")
    lab.copy("COPY src /x")
    assert (lab.root / "x/other").stat().st_ino == (lab.root / "x/main.c").stat().st_ino
    assert stat.S_ISFIFO((lab.root / "x/fifo").lstat().st_mode)
    assert os.getxattr(lab.root / "x/main.o", "user.x") == b"1"
    assert (lab.root / "x/empty").read_bytes() == b""
    assert (lab.root / "x/large").read_bytes() == (lab.source / "src/large").read_bytes()
    assert (lab.root / os.fsdecode(b"x/\xff\xe9")).read_text() == "odd"


def test_devices_of_an_image(lab: Lab) -> None:
    os.mknod(lab.source / "src/null", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    os.mknod(lab.source / "src/disk", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    image = Tree(str(lab.source), "image x")
    lab.copier.put(lab.copier.select(step("COPY --from=x src /x"), image), str(lab.root), "", "/")
    for name, kind, device in (("null", stat.S_IFCHR, (1, 3)), ("disk", stat.S_IFBLK, (7, 200))):
        status = (lab.root / "x" / name).lstat()
        assert (stat.S_IFMT(status.st_mode), os.major(status.st_rdev), os.minor(status.st_rdev)) == (kind, *device)
    assert stat.S_IMODE((lab.root / "x/null").lstat().st_mode) == 0o640


def test_owners(lab: Lab) -> None:
    (lab.root / "etc").mkdir()
    (lab.root / "etc/passwd").write_text("root:x:0:0::/:\nwww:x:33:34::/:\n")
    (lab.root / "etc/group").write_text("adm:x:4:\n")
    for text, owner in {"www": (33, 34), "www:adm": (33, 4), "7": (7, 7), "7:8": (7, 8), "33:adm": (33, 4)}.items():
        place = f"new-{text}"
        lab.copy(f"COPY --chown={text} src /{place}/in/")
        found = {(path.lstat().st_uid, path.lstat().st_gid) for path in (lab.root / place).rglob("*")}
        assert found == {owner}, text
        assert (lab.root / place).stat().st_uid == owner[0], "directories that are made for it too"
    for text in ("nobody", "www:nogroup", "www:", ":adm", "99999999999"):
        with pytest.raises(ContainerfileError, match="--chown="):
            lab.copy(f"COPY --chown={text} a.txt /x")


def test_owners_are_kept_from_images(lab: Lab) -> None:
    os.chown(lab.source / "src/main.c", 5, 6)
    image = Tree(str(lab.source), "image x")
    lab.copier.put(lab.copier.select(step("COPY --from=x src /x"), image), str(lab.root), "", "/")
    status = (lab.root / "x/main.c").stat()
    assert (status.st_uid, status.st_gid) == (5, 6)


def test_permissions(lab: Lab) -> None:
    lab.copy("COPY --chmod=u=rwX,go=rX src /x")
    assert stat.S_IMODE((lab.root / "x/lib").stat().st_mode) == 0o755
    assert stat.S_IMODE((lab.root / "x/main.c").stat().st_mode) == 0o644
    lab.copy("COPY --chmod=4750 <<E /y\nE")
    assert stat.S_IMODE((lab.root / "y").stat().st_mode) == 0o4750
    with pytest.raises(ContainerfileError, match="--chmod=rwx: it is to be octal, like 755, or like u=rwX,go=rX"):
        lab.select("COPY --chmod=rwx a.txt /x")


MODES = (
    "755",
    "7",
    "u=rw",
    "a+x",
    "+X",
    "go-rwx",
    "u=rwX,g=rX,o=",
    "u+s,g+s",
    "+t",
    "g=u",
    "o=g-w",
    "a=",
    "ug=rw+x,o-r",
    "=r",
    *("u-s", "o+t", "u+t", "g+st", "o="),
)


def test_permissions_are_those_of_chmod(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for number, directory in enumerate((False, True)):
            path = tmp_path / str(number)
            path.mkdir() if directory else path.touch()
            for text in MODES:
                for mode in (0o000, 0o644, 0o751, 0o6755, 0o1777):
                    os.chmod(path, mode)
                    # Of directories chmod(1) keeps set-id bits that a mode does not name; --chmod sets what it says.
                    if directory and mode == 0o6755 and ("=" in text or text.isdigit()):
                        continue
                    subprocess.run(["chmod", text, str(path)], check=True)
                    change = permissions.parse(text)
                    assert change is not None
                    assert f"{change(mode, directory):o}" == f"{stat.S_IMODE(path.stat().st_mode):o}", (text, oct(mode))
    finally:
        os.umask(before)
    for text in ("", "8", "77777", "rwx", "u=rwz", "u+r,", "x=r"):
        assert permissions.parse(text) is None


def test_what_was_there(lab: Lab) -> None:
    """Directories are merged and keep what they are; links to directories are followed; anything else is replaced."""
    (lab.root / "x/lib").mkdir(parents=True)
    (lab.root / "x/lib/old").write_text("old")
    (lab.root / "x/main.c").symlink_to("/x/lib/old")
    os.mkfifo(lab.root / "x/main.o")
    os.chmod(lab.root / "x", 0o700)
    lab.copy("COPY src /x")
    assert stat.S_IMODE((lab.root / "x").stat().st_mode) == 0o700
    assert (lab.root / "x/lib/old").read_text() == "old"
    assert (lab.root / "x/main.c").read_text() == "main"
    assert (lab.root / "x/main.o").read_text() == "object"
    (lab.root / "usr/lib").mkdir(parents=True)
    (lab.root / "lib").symlink_to("usr/lib")
    lab.copy("COPY src /")
    assert (lab.root / "usr/lib/x.c").read_text() == "x"
    assert (lab.root / "lib").is_symlink()
    lab.copy("COPY a.txt /lib")
    assert (lab.root / "usr/lib/a.txt").read_text() == "A"


def test_directories_and_files_do_not_replace_each_other(lab: Lab) -> None:
    (lab.root / "main.c").mkdir()
    (lab.root / "lib").write_text("")
    with pytest.raises(
        ContainerfileError, match=r"F:2: COPY: /main\.c: a directory is there, which a file does not replace"
    ):
        lab.copy("COPY src/main.c /./")
    with pytest.raises(ContainerfileError, match="F:2: COPY: /lib: it is there, and no directory"):
        lab.copy("COPY src /")


def test_nothing_leaves_the_image(lab: Lab, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    (lab.root / "out").symlink_to(outside)
    (lab.root / "up").symlink_to("../../../../../.." + str(outside))
    (lab.root / "file").symlink_to(outside / "file")
    lab.copy("COPY a.txt /file")
    assert (outside / "file").read_text() == "mine"
    lab.copy("COPY a.txt /out/x")
    lab.copy("COPY b.txt /up/y")
    assert os.listdir(outside) == ["file"]
    inside = lab.root / str(outside).lstrip("/")
    assert [(inside / name).read_text() for name in ("x", "y")] == ["A", "B"]


def test_links_of_the_image_to_what_is_not_there(lab: Lab) -> None:
    """A target's links are followed and the directory is made; those in the way of an archive's names are not."""
    (lab.root / "to").symlink_to("/opt/app")
    (lab.root / "loop").symlink_to("loop")
    lab.copy("COPY a.txt /to/")
    assert (lab.root / "opt/app/a.txt").read_text() == "A"
    (lab.root / "work").symlink_to("opt/work")
    assert lab.copier.make_directory(step("COPY a /b"), str(lab.root), "/work/sub")
    assert (lab.root / "opt/work/sub").is_dir()
    for text in ("COPY a.txt /loop/x", "COPY src /loop"):
        with pytest.raises(ContainerfileError, match="/loop: it is there, and no directory"):
            lab.copy(text)


def test_nothing_comes_from_outside_of_the_context(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    (lab.source / "absolute").symlink_to(tmp_path / "outside")
    (lab.source / "relative").symlink_to("../outside")
    (lab.source / "loop").symlink_to("loop")
    for name in ("absolute", "relative"):
        with pytest.raises(ContainerfileError, match="is a link to something that is not in the context"):
            lab.select(f"COPY {name} /x")
    with pytest.raises(ContainerfileError, match="F:2: COPY: "):
        lab.select("COPY loop /x")
    with pytest.raises(ContainerfileError, match=r"\.\./outside is outside of the context"):
        lab.select("COPY ../outside /x")
    with pytest.raises(ContainerfileError, match="is outside of the context"):
        lab.select("COPY src/../../outside /x")
    assert lab.copy("COPY /a.txt /x") == ["x"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("COPY nothing /x", "F:2: COPY: there is no nothing in the context"),
        ("COPY *.nothing /x", "F:2: COPY: nothing in the context fits *.nothing"),
        ("COPY docs/secret.md /x", "F:2: COPY: docs/secret.md is left out of the context by its ignore file"),
        ("COPY docs/sec* /x", "F:2: COPY: all that fits docs/sec* is left out of the context by its ignore file"),
        ("COPY secret /x", "F:2: COPY: secret leads to docs/secret.md, which the ignore file leaves out of the context"),
        ("COPY a.txt b.txt /x", "F:2: COPY: there are 2 sources, so the target is to be a directory and end with /: /x/"),
        (
            "COPY *.nothing docs/sec* /x/",
            "F:2: COPY: nothing in the context fits *.nothing, and all that fits docs/sec* is left out",
        ),
        ("COPY fifo /x", "F:2: COPY: fifo: fifo is neither a file nor a directory"),
        ("COPY a[ /x", "F:2: COPY: 'a[' has a [ without its ]"),
        ("COPY --exclude=a[ a.txt /x", "F:2: COPY: 'a[' has a [ without its ]"),
        ("COPY a.txt/b /x", "F:2: COPY: there is no a.txt/b in the context"),
    ],
)
def test_what_is_wrong_is_said(lab: Lab, text: str, said: str) -> None:
    os.mkfifo(lab.source / "fifo")
    (lab.source / "secret").symlink_to("docs/secret.md")
    with pytest.raises(ContainerfileError) as caught:
        lab.select(text, "docs/secret*")
    assert caught.value.message.startswith(said)


def test_patterns_and_directories(lab: Lab) -> None:
    """More than one file for a pattern: into a directory, whose name needs no slash."""
    (lab.root / "there").mkdir()
    assert lab.copy("COPY *.txt /there") == ["there", "there/a.txt", "there/b.txt"]
    assert lab.copy("COPY *.txt /new")[:3] == ["new", "new/a.txt", "new/b.txt"]
    lab.copy("COPY a.* /one")
    assert (lab.root / "one").read_text() == "A"
    lab.copy("COPY src/* /mixed/")
    # Not that of src/lib, for src/inner was put there before it.
    assert stat.S_IMODE((lab.root / "mixed").stat().st_mode) == 0o755


def test_patterns_that_nothing_fits(lab: Lab) -> None:
    """They are left out where there is another source: `COPY package.json yarn.lock* ./`."""
    assert lab.copy("COPY a.txt *.nothing docs/sec* /x/", "docs/secret*") == ["x", "x/a.txt"]
    (lab.source / "broken").symlink_to("nowhere")
    assert [item["path"] for item in lab.select("COPY */main.c /x").items] == ["src/main.c"]


def test_patterns_of_many_directories(lab: Lab) -> None:
    """A place that is come to in many ways is looked at once."""
    (lab.source / ("a/" * 60) / "z").mkdir(parents=True)
    with pytest.raises(ContainerfileError, match="nothing in the context fits"):
        lab.select("COPY " + "**/a/" * 20 + "nothing /x/")


def test_without_a_context(copier: Copier, tmp_path: Path) -> None:
    nothing = Tree("", "the context")
    with pytest.raises(ContainerfileError, match=r"there is no a: the context has no files; only a Containerfile was given"):
        copier.select(step("COPY a /x"), nothing)
    copier.put(copier.select(step("COPY <<E /x\nhi\nE"), nothing), str(tmp_path), "", "/")
    assert (tmp_path / "x").read_text() == "hi\n"


def test_ignore_files(lab: Lab) -> None:
    rules = "*\n!src\n**/*.o\n!docs/readme.md"
    assert lab.copy("COPY . /", rules) == [
        *("docs", "docs/readme.md", "src", "src/inner", "src/lib", "src/lib/x.c", "src/main.c"),
    ]


def same(lab: Lab, change: Callable[[], object], text: str = "COPY src /x") -> bool:
    before = lab.select(text).digest
    change()
    return lab.select(text).digest == before


def test_digests(lab: Lab) -> None:
    """Everything that would be in the image counts, but for times; nothing else does."""
    inner = lab.source / "src/lib/x.c"
    assert same(lab, lambda: os.utime(inner, (1, 1)))
    assert same(lab, lambda: os.chown(inner, 5, 5)), "of the context owners do not count"
    assert same(lab, lambda: lab.write("a.txt", "other"))
    assert not same(lab, lambda: lab.write("src/lib/x.c", "y"))
    assert not same(lab, lambda: os.chmod(inner, 0o600))
    assert not same(lab, lambda: os.rename(inner, inner.with_name("y.c")))
    assert not same(lab, lambda: os.setxattr(lab.source / "src/main.c", "user.x", b"1"))
    assert not same(lab, (lab.source / "src/new").mkdir)
    assert not same(lab, lambda: ((lab.source / "src/inner").unlink(), (lab.source / "src/inner").symlink_to("main.c")))
    assert lab.select("COPY a.txt /x").digest != lab.select("COPY b.txt /x").digest
    image = Tree(str(lab.source), "image x")
    before = lab.copier.select(step("COPY src /x"), image).digest
    os.chown(lab.source / "src/main.c", 9, 9)
    assert lab.copier.select(step("COPY src /x"), image).digest != before, "of an image they do"
    assert lab.copier.digest(step("COPY a /b"), image, "src") == lab.copier.digest(step("ADD c /d"), image, "/src")


def test_a_tree_of_any_order_has_one_digest(lab: Lab) -> None:
    for place, order in (("one", range(40)), ("two", reversed(range(40)))):
        for number in order:
            lab.write(f"{place}/{number}", str(number))
    assert lab.select("COPY one /x").digest == lab.select("COPY two /x").digest


def test_what_changes_after_it_was_selected(lab: Lab) -> None:
    for text, change in (
        ("COPY a.txt /x", lambda: lab.write("a.txt", "other")),
        ("COPY src /y", lambda: lab.write("src/new", "")),
        ("COPY docs /z", lambda: os.unlink(lab.source / "docs/readme.md")),
    ):
        selection = lab.select(text)
        change()
        with pytest.raises(ContainerfileError, match="has changed since the build began: build once more"):
            lab.put(selection)
    selection = lab.select("COPY b.txt /x")
    os.unlink(lab.source / "b.txt")
    with pytest.raises(ContainerfileError, match=r"F:2: COPY: /b\.txt: No such file"):
        lab.put(selection)


def archive(*members: tuple[str, str, str], mode: str = "w") -> bytes:
    """Members as name, type and content or link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}[
                kind
            ]
            info.uid, info.mode, info.mtime = 7, 0o750, 1000
            data = b""
            if kind == "file":
                data = content.encode()
                info.size = len(data)
            else:
                info.linkname = content
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


PLAIN = (
    ("top", "dir", ""),
    ("top/file", "file", "text" * 300),
    ("top/link", "sym", "file"),
    ("top/same", "hard", "top/file"),
)


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:bz2", "w:xz", "zstd"])
def test_archives_are_unpacked(lab: Lab, kind: str) -> None:
    content = zstandard.compress(archive(*PLAIN)) if kind == "zstd" else archive(*PLAIN, mode=kind)
    lab.write("data", content)
    assert lab.copy("ADD data /x") == ["x", "x/top", "x/top/file", "x/top/link", "x/top/same"]
    status = (lab.root / "x/top/file").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode), status.st_mtime, status.st_nlink) == (7, 0o750, 1000, 2)
    lab.copy("COPY data /copied")
    assert (lab.root / "copied").read_bytes() == content
    lab.copy("ADD --unpack=false data /added")
    assert (lab.root / "added").read_bytes() == content


def test_large_blocks_of_bzip2(lab: Lab) -> None:
    """It gives its first byte when a block of 900 kB is there."""
    lab.write("data.tar.bz2", archive(("file", "file", os.urandom(500_000).hex()), mode="w:bz2"))
    assert lab.copy("ADD data.tar.bz2 /x/") == ["x", "x/file"]


def test_what_looks_like_an_archive(lab: Lab) -> None:
    for number, content in enumerate(
        (gzip.compress(b"no tar"), bz2.compress(b"no tar"), b"\x1f\x8bjunk", b"BZh", bytes(2048))
    ):
        lab.write(f"data{number}", content)
        lab.copy(f"ADD data{number} /y{number}")
        assert (lab.root / f"y{number}").read_bytes() == content


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ((("../x", "file", ""),), "would lead out of the layer"),
        ((("a/../../x", "file", ""),), "would lead out of the layer"),
        ((("a", "hard", "../../etc/passwd"),), "would lead out of the layer"),
        ((("a", "hard", "nothing"),), "No such file"),
        ((("a", "file", "x"), ("a/b", "file", "")), "it is there, and no directory"),
        ((("a", "dir", ""), ("a", "file", "")), "a directory is there"),
    ],
)
def test_archives_that_are_refused(lab: Lab, members: tuple[tuple[str, str, str], ...], said: str) -> None:
    lab.write("data.tar", archive(("fine", "file", "x"), *members))
    with pytest.raises(ContainerfileError, match=said):
        lab.copy("ADD data.tar /x/")


def test_links_in_archives_stay_inside(lab: Lab, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    lab.write("data.tar", archive(("out", "sym", str(outside)), ("out/file", "file", "x")))
    with pytest.raises(ContainerfileError, match="it is there, and no directory"):
        lab.copy("ADD data.tar /")
    assert os.listdir(outside) == []


def test_archives_that_end_too_early(lab: Lab) -> None:
    lab.write("data.tar.gz", archive(("file", "file", os.urandom(9000).hex()), mode="w:gz")[:-3000])
    with pytest.raises(ContainerfileError, match="ends too early"):
        lab.copy("ADD data.tar.gz /x/")


def test_what_the_target_cannot_hold(lab: Lab) -> None:
    """Who reads the files has more of them than a pipe holds: it does not wait for one who has given up."""
    lab.write("many.tar", archive(("f", "file", "x")))
    os.setxattr(lab.write("one/a", "a"), "user.name", b"v" * 3500)
    for name in ("one/z", "two/z"):
        lab.write(name, os.urandom(1 << 20))
    selection = lab.select("ADD one many.tar two /x/")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=5", "none", lab.root], check=True)  # no room for the attribute
    try:
        try:
            os.setxattr(lab.root, "user.a", b"")
        except OSError:
            pytest.skip("a tmpfs has user attributes since Linux 6.6")
        with pytest.raises(ContainerfileError, match=r"F:2: ADD: 'a': its attribute 'user\.name' cannot be set"):
            lab.put(selection)
    finally:
        subprocess.run(["umount", lab.root], check=True)


def test_an_archive_that_changes(lab: Lab) -> None:
    lab.write("data.tar", archive(*PLAIN))
    selection = lab.select("ADD data.tar /x/")
    lab.write("data.tar", archive(*PLAIN, ("more", "file", "")))
    with pytest.raises(ContainerfileError, match=r"data.tar has changed since the build began"):
        lab.put(selection)


def test_what_was_fetched(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_bytes(archive(*PLAIN))
    fetched = (Fetched("http://h/data.tar", str(path), "data.tar", 5 * 10**9),)
    lab.put(lab.select("ADD http://h/data.tar /x", fetched=fetched))
    status = (lab.root / "x").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime, status.st_size) == (0o600, 5, len(path.read_bytes()))
    lab.put(lab.select("ADD http://h/data.tar /y/", fetched=fetched))
    assert (lab.root / "y/data.tar").is_file()
    lab.put(lab.select("ADD --unpack http://h/data.tar a.txt /z/", fetched=fetched))
    assert sorted(os.listdir(lab.root / "z")) == ["a.txt", "top"]
    nameless = (Fetched("http://h/", str(path), "", 0),)
    with pytest.raises(ContainerfileError, match="http://h/ does not say what its file is called"):
        lab.select("ADD http://h/ /x/", fetched=nameless)
    lab.put(lab.select("ADD http://h/ /named", fetched=nameless))
    assert (lab.root / "named").is_file()


def test_working_directories(lab: Lab) -> None:
    workdir = step("COPY a.txt /x")
    (lab.root / "link").symlink_to("/made")
    assert lab.copier.make_directory(workdir, str(lab.root), "/made/deep")
    assert not lab.copier.make_directory(workdir, str(lab.root), "/link/deep/.")
    assert stat.S_IMODE((lab.root / "made/deep").stat().st_mode) == 0o755
    (lab.root / "file").write_text("")
    with pytest.raises(ContainerfileError, match="F:2: COPY: /file: it is there, and no directory"):
        lab.copier.make_directory(workdir, str(lab.root), "/file/x")


def test_many_at_once(lab: Lab) -> None:
    def one(number: int) -> str:
        root = lab.root / str(number)
        root.mkdir()
        selection = lab.select("COPY . /x/")
        lab.copier.put(selection, str(root), "", "/")
        return hashlib.sha256(repr(sorted(str(path.relative_to(root)) for path in root.rglob("*"))).encode()).hexdigest()

    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(one, range(24)))) == 1


def test_the_copier_holds_nothing_of_the_command(tmp_path: Path) -> None:
    with open(tmp_path / "held", "w") as _held, Copier() as made:
        made.select(step("COPY <<E /x\nE"), Tree("", "the context"))
        found = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{made._pid}/fd")}
        assert str(tmp_path / "held") not in found
        assert len(os.listdir(f"/proc/{made._pid}/fd")) == 4


def gone(pid: int | str) -> bool:
    """Whether a process has ended; somebody may have yet to be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_it_ends_with_the_command(tmp_path: Path) -> None:
    script = (
        "import os, time; from runtime.build.copying import Copier; c = Copier(); print(c._pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()) as command:
        assert command.stdout is not None
        copier = int(command.stdout.readline())
        command.send_signal(signal.SIGKILL)
        command.wait()
    wait_until(lambda: gone(copier))


def test_what_is_under_way_ends_with_it(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        file.truncate(1 << 40)
    with Copier() as made, ThreadPoolExecutor(1) as threads:
        hashing = threads.submit(made.select, step("COPY file /x"), Tree(str(tmp_path), "the context"))
        children = Path(f"/proc/{made._pid}/task/{made._pid}/children")
        wait_until(lambda: children.read_text() != "")
        jobs = children.read_text().split()
        made.close()
        with pytest.raises(CrispError, match="the process that copies its files was killed"):
            hashing.result(timeout=60)
    wait_until(lambda: gone(jobs[0]))


def test_a_copier_that_is_gone(tmp_path: Path) -> None:
    made = Copier()
    os.kill(made._pid, signal.SIGKILL)
    os.waitid(os.P_PID, made._pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(CrispError, match="F:2: COPY: the process that copies its files was killed"):
        made.select(step("COPY a /x"), Tree(str(tmp_path), "the context"))
    made.close()
    made.close()
