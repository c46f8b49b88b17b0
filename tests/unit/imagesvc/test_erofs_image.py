"""The EROFS writer: fields as erofs_fs.h has them, every boundary, and what fsck.erofs, dump.erofs and the kernel say."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagesvc.erofs import format as ondisk
from imagesvc.erofs import removing, xattrs
from imagesvc.erofs.format import BLOCK
from imagesvc.erofs.image import Attributes, Directory, ImageError, ImageWriter
from tests.fuzz import layer_targets
from tests.images.layer_stack import assert_sound, place_of

pytestmark = pytest.mark.root

MTIME = 1_700_000_000_123_456_789
SIZES = (
    0,
    1,
    31,
    511,
    512,
    513,
    4096 + 512,
    4096 + 513,
    32,
    4031,
    4032,
    4033,
    4063,
    4064,
    4065,
    4095,
    4096,
    4097,
    8191,
    8192,
    8193,
    262143,
    262144,
    300_001,
)


def content(size: int) -> bytes:
    return (b"%d:" % size * (size // 2 + 1))[:size]


class Making:
    """An image being made, and where it goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = ImageWriter()
        self.root = Directory(None, b"")
        self.file_descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def file(self, name: bytes, data: bytes, where: Directory | None = None, step: int = 1 << 20, **more: int) -> int:
        attributes = Attributes(
            stat.S_IFREG | more.get("mode", 0o644), more.get("uid", 0), more.get("gid", 0), more.get("mtime", MTIME)
        )
        node = self.writer.file(attributes, len(data))
        for start in range(0, len(data), step):
            self.writer.data(memoryview(data)[start : start + step])
            self.write()
        (where or self.root).children[name] = node
        return node

    def directory(self, name: bytes, where: Directory | None = None) -> Directory:
        directory = Directory(where or self.root, name)
        directory.parent.children[name] = directory  # type: ignore[union-attr]
        return directory

    def write(self) -> None:
        for address, buffers in self.writer.take():
            os.pwritev(self.file_descriptor, buffers, address)

    def finish(self) -> Path:
        self.writer.finish(self.root)
        self.write()
        os.ftruncate(self.file_descriptor, self.writer.size)
        os.close(self.file_descriptor)
        assert_sound(self.path)
        return self.path


@pytest.fixture
def making(tmp_path: Path) -> Making:
    return Making(tmp_path / "image.erofs")


@contextmanager
def mounted(making: Making) -> Iterator[Path]:
    with place_of(making.finish()) as place:
        yield place


def test_structures_are_as_long_as_the_kernels() -> None:
    sizes = [s.size for s in (ondisk.SUPERBLOCK, ondisk.COMPACT, ondisk.EXTENDED, ondisk.DIRENT)]
    assert sizes == [128, 32, 64, 12]
    assert ondisk.device_number(0x123, 0x45678) == 0x45678 & 0xFF | 0x123 << 8 | (0x45678 & ~0xFF) << 12


def test_every_field_of_a_small_image(making: Making) -> None:
    """erofs_fs.h, byte by byte: one file that takes the compact form, one that cannot."""
    making.root.mtime = MTIME + 1
    making.root.mode, making.root.uid, making.root.gid = 0o1750, 70_000, 7
    making.file(b"a", b"text", mode=0o4751, uid=1, gid=65535)
    making.file(b"b", content(4097), mtime=-1, uid=70_000)
    image = making.finish().read_bytes()
    magic, checksum, compatible, block_bits, slots, root = struct.unpack_from("<IIIBBH", image, 1024)
    assert (magic, checksum, compatible, block_bits, slots, root) == (0xE0F5E1E2, 0, 2, 12, 0, 36)
    inos, seconds, nanoseconds, blocks, meta, shared = struct.unpack_from("<QQIIII", image, 1040)
    assert (inos, seconds, nanoseconds) == (3, 1_700_000_000, 123_456_789)
    assert (blocks * 4096, meta, shared) == (len(image), 0, 0)
    assert image[1072:1088] == bytes(16)
    assert image[1088:1104].rstrip(b"\0") == b"crisp layer"
    assert image[1104:1152] == bytes(48)
    kind, words, mode, zero, size, block, number, uid, gid = struct.unpack_from("<HHHHQIIII", image, 36 * 32)
    assert (kind, words, mode, zero, block, uid, gid) == (5, 0, 0o41750, 0, 0, 70_000, 7)
    assert struct.unpack_from("<qII", image, 36 * 32 + 32) == (1_700_000_000, 123_456_790, 2)
    names = image[36 * 32 + 64 : 36 * 32 + 64 + size]
    entries = list(struct.iter_unpack("<QHBB", names[:48]))
    assert [(offset, file_type, zero) for _nid, offset, file_type, zero in entries] == [
        *((48, 2, 0), (49, 2, 0), (51, 1, 0), (52, 1, 0))
    ]
    assert names[48:] == b"...ab"
    assert entries[0][0] == entries[1][0] == 36
    first, second = (entry[0] * 32 for entry in entries[2:])
    kind, words, mode, links, size, zero, block, number, uid, gid, zero2 = struct.unpack_from("<HHHHIIIIHHI", image, first)
    assert (kind, words, mode, links, size, zero, number) == (4, 0, 0o104751, 1, 4, 0, 1)
    assert (uid, gid, zero2) == (1, 65535, 0)
    assert image[first + 32 : first + 36] == b"text"
    kind, words, mode, zero, size, block, number, uid, gid = struct.unpack_from("<HHHHQIIII", image, second)
    assert (kind, words, mode, zero, size, number, uid, gid) == (5, 0, 0o100644, 0, 4097, 2, 70_000, 0)
    assert struct.unpack_from("<qII", image, second + 32) == (-1, 999_999_999, 1)
    assert image[block * 4096 : block * 4096 + 4096] + image[second + 64 : second + 65] == content(4097)


@pytest.mark.parametrize("step", [1, 4095, 1 << 20])
def test_files_of_every_length(making: Making, step: int) -> None:
    sizes = [size for size in SIZES if step > 1 or size < 5000]
    for size in sizes:
        making.file(b"%d" % size, content(size), step=step)
    with mounted(making) as place:
        assert {int(name): (place / name).read_bytes() for name in os.listdir(place)} == {s: content(s) for s in sizes}


def test_an_inode_everywhere_in_a_block(making: Making) -> None:
    """What is behind an inode must not pass the end of the block; and no block is left half empty for that."""
    for size in range(0, 4200, 37):
        making.file(b"%d" % size, content(size), uid=70_000 if size % 2 else 0)
        making.root.children[b"l%d" % size] = making.writer.symlink(
            Attributes(stat.S_IFLNK | 0o777, 0, 0, MTIME), content(size)[:4095] or b"."
        )
    with mounted(making) as place:
        for size in range(0, 4200, 37):
            assert (place / str(size)).read_bytes() == content(size)
            assert os.readlink(os.fsencode(place / f"l{size}")) == (content(size)[:4095] or b".")
        packed = sum(64 + size for size in range(0, 4200, 37)) * 2
        assert making.path.stat().st_size < packed * 2


@pytest.mark.parametrize("count", [0, 1, 200, 255, 256, 257, 5000])
def test_directories_over_blocks(making: Making, count: int) -> None:
    """Sorted across blocks: every name is found, none besides, in a directory and in the root."""
    names = [b"%05d-" % (i * 7919 % 100_000) + b"x" * (i % 250) for i in range(count)]
    names += [b"-", b"!", b"..a", b"\xff" * 255, b"n" * 255, b".hidden", b"..."]
    below = making.directory(b"below")
    for name in names:
        making.file(name, name[:9])
        below.children[name] = making.root.children[name]
        making.writer.link(making.root.children[name])  # type: ignore[arg-type]
    with mounted(making) as place:
        root = os.fsencode(place)
        assert sorted(os.listdir(root)) == sorted([*names, b"below"])
        assert sorted(os.listdir(root + b"/below")) == sorted(names)
        for name in names:
            status = os.lstat(root + b"/below/" + name)
            assert (status.st_size, status.st_nlink) == (len(name[:9]), 2)
            assert not os.path.lexists(root + b"/" + name[:250] + b"absent")
        assert os.stat(root).st_nlink == 3


def test_devices_links_and_times(making: Making) -> None:
    below = making.directory(b"d")
    below.mtime = -5
    below.mode = 0o3777
    for name, kind, number in ((b"c", ondisk.CHR, (4095, 1048575)), (b"b", ondisk.BLK, (8, 1)), (b"w", ondisk.CHR, (0, 0))):
        attributes = Attributes(ondisk.MODES[kind] | 0o640, 1, 2, 10**18)
        below.children[name] = making.writer.device(kind, attributes, ondisk.device_number(*number))
    below.children[b"f"] = making.writer.device(ondisk.FIFO, Attributes(stat.S_IFIFO | 0o600, 1, 2, 10**18))
    node = making.file(b"one", b"x" * 5000)
    for name in (b"two", b"three", b"four"):
        making.writer.link(node)
        below.children[name] = node
    del below.children[b"four"]
    making.writer.unlink(node)
    with mounted(making) as place:
        found = {name: os.lstat(place / "d" / name) for name in os.listdir(place / "d")}
        assert (os.major(found["c"].st_rdev), os.minor(found["c"].st_rdev)) == (4095, 1048575)
        assert found["b"].st_rdev == os.makedev(8, 1)
        assert stat.S_ISCHR(found["w"].st_mode)
        assert found["w"].st_rdev == 0
        assert stat.S_ISFIFO(found["f"].st_mode)
        assert (found["f"].st_uid, found["f"].st_gid, found["f"].st_mtime_ns) == (1, 2, 10**18)
        assert found["two"].st_ino == found["three"].st_ino == (place / "one").stat().st_ino
        assert found["two"].st_nlink == 3
        status = (place / "d").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o3777, -5)


def test_as_many_names_as_a_compact_inode_counts(making: Making) -> None:
    node = making.file(b"one", b"")
    for _ in range(65534):
        making.writer.link(node)
    with pytest.raises(ImageError):
        making.writer.link(node)
    with mounted(making) as place:
        assert (place / "one").stat().st_nlink == 65535


def test_sparse_files_take_no_room(making: Making) -> None:
    size = 300 << 30
    node, address = making.writer.sparse_file(Attributes(stat.S_IFREG | 0o600, 0, 0, MTIME), size)
    making.root.children[b"sparse"] = node
    for offset in (0, 5000, size - 3):
        making.writer.put(address + offset, b"abc")
    making.file(b"after", b"it")
    with mounted(making) as place:
        assert (place / "sparse").stat().st_size == size
        with open(place / "sparse", "rb") as file:
            for offset in (0, 5000, size - 3):
                assert os.pread(file.fileno(), 3, offset) == b"abc"
            assert os.pread(file.fileno(), 5000, 1 << 30) == bytes(5000)
        assert (place / "after").read_bytes() == b"it"
        assert making.path.stat().st_blocks * 512 < 1 << 20
    too_much = ImageWriter()
    with pytest.raises(ImageError):
        too_much.sparse_file(Attributes(stat.S_IFREG, 0, 0, 0), 1 << 60)


XATTRS = {
    b"user.a": b"",
    b"user.b": b"x" * 5000,
    b"trusted.c": b"y" * 65535,
    b"security.d": b"\0\xff",
    b"user." + b"n" * 250: b"1",
}


@pytest.mark.parametrize("where", ["file", "directory", "root"])
@pytest.mark.parametrize("kept", [{}, {b"user.a": b"1"}, {b"user.k%02d" % i: b"v" * i * 9 for i in range(60)}, XATTRS])
def test_attributes_of_every_length(making: Making, where: str, kept: dict[bytes, bytes]) -> None:
    """Small ones and such that pass blocks, behind an inode and, for the root, shared."""
    making.file(b"before", b"x" * 1000)
    node = making.writer.file(Attributes(stat.S_IFREG, 0, 0, 5, xattrs.encode(kept if where == "file" else {})), 4000)
    making.writer.data(content(4000))
    making.root.children[b"file"] = node
    below = making.directory(b"directory")
    for i in range(90):
        making.file(b"in%d" % i, b"x", below)
    if where == "directory":
        below.xattrs = kept
    if where == "root":
        making.root.xattrs = kept
    with mounted(making) as place:
        for name, wanted in (("file", where == "file"), ("directory", where == "directory"), (".", where == "root")):
            path = os.fsencode(place / name)
            names = [os.fsencode(found) for found in os.listxattr(path)]
            assert {found: os.getxattr(path, found) for found in names} == (kept if wanted else {})
        assert (place / "file").read_bytes() == content(4000)
        assert len(os.listdir(place / "directory")) == 90


def test_what_is_taken_out_is_gone(making: Making) -> None:
    """In place: of a directory that stands behind its inode, of one that has blocks, of the root, until they are empty."""
    few, many = making.directory(b"few"), making.directory(b"many")
    for where, count in ((making.root, 3), (few, 5), (many, 700)):
        for i in range(count):
            making.file(b"%03d-" % i + b"n" * (i % 90), b"%d" % i, where)
    making.finish()
    with open(making.path, "r+b") as image:

        def remove(paths: list[bytes]) -> None:
            written = removing.remove(lambda address, length: os.pread(image.fileno(), length, address), paths)
            for address, data in written:
                os.pwrite(image.fileno(), data, address)

        gone: set[bytes] = set()
        everything = [b"%03d-" % i + b"n" * (i % 90) for i in range(700)]
        rounds = [[b"001-n", b"few/000-"], [b"many/" + name for name in everything[3:600:2]], [b"few/004-nnnn"]]
        rounds += [[b"many/" + name for name in everything[600:]], [b"many/" + name for name in everything[:600:2]]]
        rounds += [[b"many/001-n"], [b"few/001-n", b"few/002-nn", b"few/003-nnn"]]
        for paths in rounds:
            remove(paths)
            gone.update(paths)
            assert_sound(making.path)
            with place_of(making.path) as place:
                root = os.fsencode(place)
                assert sorted(os.listdir(root + b"/many")) == [n for n in everything if b"many/" + n not in gone]
                left = [n for n in everything[:5] if b"few/" + n not in gone]
                assert sorted(os.listdir(root + b"/few")) == left
                assert all((place / os.fsdecode(b"few/" + name)).read_bytes() for name in left)
                assert not any(os.path.lexists(root + b"/" + path) for path in gone)
        with pytest.raises(ValueError, match="lacks"):
            remove([b"few/000-"])


def take_out(path: Path, paths: list[bytes]) -> int:
    """Removes these; how often the image was read for it."""
    reads = 0
    with open(path, "r+b") as image:

        def read(address: int, length: int) -> bytes:
            nonlocal reads
            reads += 1
            return os.pread(image.fileno(), length, address)

        for address, data in removing.remove(read, paths):
            os.pwrite(image.fileno(), data, address)
    assert_sound(path)
    return reads


def test_what_is_left_fills_its_blocks_to_the_last_byte(making: Making) -> None:
    """A directory that had its last names behind its inode has none there then."""
    where = making.directory(b"full")
    names = [b"%02d" % i + b"n" * 99 for i in range(36)]
    names[-1] += b"n" * (BLOCK - 27 - sum(12 + len(name) for name in names))
    for name in [*names, b"~"]:
        making.file(name, b"x", where)
    making.file(b"neighbour", b"y" * 3000)
    making.finish()
    take_out(making.path, [b"full/~"])
    with place_of(making.path) as place:
        assert sorted(os.listdir(os.fsencode(place / "full"))) == names
        assert (place / "neighbour").read_bytes() == b"y" * 3000


def test_each_directory_is_read_once_to_take_something_out(making: Making) -> None:
    depth, width = 40, 300
    where, deep = making.root, b""
    paths = []
    for _ in range(depth):
        where = making.directory(b"d", where)
        making.file(b"gone", b"", where)
        deep = deep + b"/d" if deep else b"d"
        paths.append(deep + b"/gone")
    for i in range(width):
        making.file(b"gone", b"", making.directory(b"%03d" % i))
        paths.append(b"%03d/gone" % i)
    making.finish()
    assert take_out(making.path, paths) <= 3 * (depth + width + 2)
    with place_of(making.path) as place:
        assert not list(place.rglob("gone"))
        assert len(list(place.rglob("*"))) == depth + width


def test_dump_reads_it(making: Making) -> None:
    making.file(b"name", content(8292), mode=0o600)
    path = making.finish()
    shown = subprocess.run(["dump.erofs", "-S", "--path=/name", path], capture_output=True, text=True, check=True).stdout
    assert "Size: 8292" in shown
    assert "plain" in shown.lower() or "Layout: 2" in shown


CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ONE = 0xFFFFFFFF
MINIMAL = acl((1, 6, NO_ONE), (4, 4, NO_ONE), (32, 4, NO_ONE))
NAMED = acl((1, 7, NO_ONE), (2, 6, 1000), (4, 5, NO_ONE), (16, 6, NO_ONE), (32, 0, NO_ONE))
ATTRIBUTES = [
    *((b"user.a", b"1"), (b"user.", b"1"), (b"nonsense", b"1"), (b"system.other", b"1"), (b"trusted.t", b""), (b"", b"1")),
    *((b"user." + b"n" * 251, b"1"), (b"security.capability", CAPABILITY), (b"security.capability", b"short")),
    *((b"security.capability", CAPABILITY + bytes(4)), (b"security.other", b"x"), (b"security.capability", b"")),
    *((xattrs.ACL_ACCESS, MINIMAL), (xattrs.ACL_ACCESS, NAMED), (xattrs.ACL_DEFAULT, NAMED), (xattrs.ACL_ACCESS, b"bad")),
    *((xattrs.ACL_ACCESS, NAMED[:-1]), (xattrs.ACL_ACCESS, b""), (xattrs.ACL_ACCESS, acl((1, 7, NO_ONE)))),
    *((xattrs.ACL_ACCESS, struct.pack("<I", 3) + NAMED[4:]), (xattrs.ACL_ACCESS, struct.pack("<I", 2))),
    (xattrs.ACL_ACCESS, acl((1, 7, NO_ONE), (2, 8, 1000), (4, 5, NO_ONE), (16, 6, NO_ONE), (32, 0, NO_ONE))),
]


@pytest.mark.parametrize("kind", ["file", "directory", "link", "device"])
def test_attributes_are_taken_as_the_kernel_takes_them(tmp_path: Path, kind: str) -> None:
    """setxattr(2) on the file system of the layers is the judge, for what one is and for the mode."""
    path = tmp_path / "it"
    for name, value in ATTRIBUTES:
        if kind == "directory":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("nowhere")
        elif kind == "device":
            os.mknod(path, stat.S_IFCHR | 0o640, os.makedev(1, 3))
        else:
            path.touch()
        if kind != "link":
            path.chmod(0o640)
        before = os.lstat(path).st_mode
        refused = 0
        try:
            os.setxattr(path, name, value, follow_symlinks=False)
        except OSError as error:
            ignored = error.errno == errno.EOPNOTSUPP or (error.errno == errno.EPERM and name.startswith(b"user."))
            refused = 0 if ignored else error.errno or 0
        kept = {os.fsencode(found): value for found in os.listxattr(path, follow_symlinks=False)}
        if value and kept:
            assert os.getxattr(path, name, follow_symlinks=False) == value
        try:
            mode, accepted = xattrs.accept(before, {name: value})
        except OSError as error:
            assert (error.errno, error.filename) == (refused, name), (name, value)
        else:
            assert not refused, (name, value)
            assert (mode, accepted) == (os.lstat(path).st_mode, kept), (name, value)
        if kind == "directory":
            path.rmdir()
        else:
            path.unlink()


def test_what_any_entries_make_can_be_mounted_and_read(tmp_path: Path) -> None:
    """The fuzzer's entries, each image read from end to end through the kernel."""
    source = random.Random(7)
    made = 0
    for number in range(60):
        path = tmp_path / f"{number}.erofs"
        if not layer_targets.make(source.randbytes(source.randrange(90)), str(path)):
            continue
        made += 1
        with place_of(path) as place:
            for parent, directories, files in os.walk(os.fsencode(place)):
                for name in [*directories, *files]:
                    full = os.path.join(parent, name)
                    status = os.lstat(full)
                    for attribute in os.listxattr(full, follow_symlinks=False):
                        os.getxattr(full, attribute, follow_symlinks=False)
                    if stat.S_ISLNK(status.st_mode):
                        assert len(os.readlink(full)) == status.st_size
                    elif stat.S_ISREG(status.st_mode):
                        assert len(Path(os.fsdecode(full)).read_bytes()) == status.st_size
    assert made > 20


def test_inodes_are_close_together(making: Making) -> None:
    """Whoever looks at all files reads few blocks; the files' last pieces are not between the inodes."""
    for number in range(1000):
        making.file(b"f%03d" % number, content(2000 + number))
    making.finish()
    assert sum(length for _address, length in making.writer.metadata) < 1000 * 100


def test_a_short_file_is_behind_its_inode(making: Making) -> None:
    making.file(b"short", content(512))
    with mounted(making) as place:
        assert (place / "short").read_bytes() == content(512)
    assert making.writer.size == 2 * BLOCK, "the superblock's, and one for the file"
