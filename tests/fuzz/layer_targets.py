"""Fuzz target of what makes layers' files: whatever entries a tar has, the image is one that fsck.erofs finds nothing in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from imagesvc.limits import Limits
from imagesvc.tar import tar_stream
from imagesvc.tar.header import TarError
from imagesvc.tar.skeleton import NoSkeleton
from imagesvc.tar.tar_stream import Data, Entry
from imagesvc.worker.layer_image import LayerImage
from imagesvc.worker.unpack import NeedsLower
from imagesvc.worker.waiting import PatientWriter

LIMITS = Limits(layer_entries=500)
NAMES = (
    *(
        b"a",
        b"b",
        b"a/b",
        b"a/b/c",
        b"./",
        b"d/",
        b"d/e/",
        b"a/",
        b".wh.a",
        b"a/.wh.b",
        b"d/.wh..wh..opq",
        b".wh..wh.plnk/1",
    ),
    *(b"../x", b"/abs", b"-", b"\xff" * 255, b"n" * 255, b"n" * 256, b"d/" * 90 + b"x", b"l/x", b"l", b".wh."),
)
LINKS = (b"a", b"/d", b"nowhere", b"l", b"../..", b"a/b", b"x" * 4094, b"x" * 4095, b"x" * 4096, b"", b".wh..wh.plnk/1")
SIZES = (0, 1, 31, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 70_000)
XATTRS: tuple[dict[bytes, bytes], ...] = (
    *({}, {}, {}, {b"user.k": b"v"}, {b"trusted.overlay.opaque": b"y"}, {b"user.k": b"v" * 5000, b"user.l": b""}),
    *({b"security.capability": b"short"}, {b"user.%d" % i: b"v" * 900 for i in range(9)}, {b"trusted.t": b"x" * 65_535}),
    {b"system.posix_acl_access": b"\2\0\0\0" + b"".join(bytes([t, 0, 6, 0]) + b"\xff" * 4 for t in (1, 4, 32))},
)
KINDS = b"000001233455566"
MOST = 1 << 30


class Script:
    """Bytes as a sequence of choices; zeros behind their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        return self._at >= len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0


def entry_of(script: Script) -> Entry:
    entry = Entry()
    kind = KINDS[script.byte() % len(KINDS)]
    entry.type = bytes([kind])
    entry.name = NAMES[script.byte() % len(NAMES)]
    flags = script.byte()
    if flags & 1:
        entry.name = b"%d" % (flags >> 1) + entry.name.lstrip(b"./")
    entry.mode = flags << 4 & 0o7777
    entry.uid = (0, 1000, 65_535, 65_536)[flags & 3]
    entry.mtime = (0, 1, -(10**18), 10**30)[flags >> 2 & 3]
    entry.xattrs = XATTRS[script.byte() % len(XATTRS)]
    if entry.type in (tar_stream.LINK, tar_stream.SYMLINK):
        entry.link = LINKS[script.byte() % len(LINKS)]
    elif entry.type in (tar_stream.CHAR, tar_stream.BLOCK_DEVICE):
        entry.major, entry.minor = script.byte() >> 4, script.byte()
    elif entry.type == tar_stream.REGULAR:
        choice = script.byte()
        entry.size = entry.stored = SIZES[choice % len(SIZES)]
        if choice & 0x80:
            gap = script.byte() << 12
            entry.segments = [(gap, entry.stored // 2), (gap + 5000 + entry.stored, entry.stored - entry.stored // 2)]
            entry.size = gap + 5000 + 2 * entry.stored
    return entry


def make(data: bytes, path: str) -> bool:
    """Makes the image that these bytes tell; whether there is one."""
    script = Script(data)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    skeleton = NoSkeleton()
    image = LayerImage(path, descriptor, skeleton)
    try:
        writer = PatientWriter(image, skeleton, LIMITS)
        while not script.is_over:
            entry = entry_of(script)
            writer.entry(entry)
            content = memoryview(bytes([entry.mode & 0xFF | 1]) * entry.stored)
            half = len(content) // 3
            for piece, last in ((content[:half], False), (content[half:], True)):
                if piece:
                    writer.data(Data(piece, last))
            if script.byte() & 1:
                image.drain()
        writer.finish()
        os.ftruncate(descriptor, image.size)
    except (TarError, NeedsLower, ValueError):
        return False
    except OSError as error:
        assert error.filename is not None, error
        return False
    finally:
        image.close()
        os.close(descriptor)
    return True


def fuzz_layers(data: bytes) -> None:
    """An image that is made is sound."""
    path = f"/dev/shm/crisp-fuzz-{os.getpid()}.erofs"
    try:
        if make(data, path):
            checked = subprocess.run(["fsck.erofs", path], capture_output=True, text=True, check=False)
            assert (checked.returncode, checked.stderr) == (0, ""), checked
    finally:
        Path(path).unlink(missing_ok=True)


TARGETS: dict[str, Callable[[bytes], None]] = {"layers": fuzz_layers}
