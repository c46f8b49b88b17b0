"""Writing past the page cache: whatever is written where, the file has it; where that cannot be it is written as usual."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from imagesvc.worker import direct_file
from imagesvc.worker.direct_file import DirectFile

BLOCK = 4096


@pytest.mark.parametrize("refused", ["", "open", "write"])
def test_pieces_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """In order and with gaps, over a buffer's end, in the middle of blocks, and corrections of what is there already."""

    def fail_open(path: str, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return real_open(path, flags, *rest)

    def fail_write(descriptor: int, data: memoryview, offset: int) -> int:
        if os.get_blocking(descriptor) and descriptor == file._direct:
            raise OSError(errno.EINVAL, "no")
        return real_write(descriptor, data, offset)

    real_open, real_write = os.open, os.pwrite
    if refused == "open":
        monkeypatch.setattr(direct_file.os, "open", fail_open)
    if refused == "write":
        monkeypatch.setattr(direct_file.os, "pwrite", fail_write)
    source = random.Random(3)
    path = str(tmp_path / "file")
    descriptor = real_open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    file = DirectFile(path, descriptor)
    wanted = bytearray()
    end = 0
    written = 0
    for _ in range(60):
        kind = source.randrange(4)
        if kind == 3 and len(wanted) > 10:
            address, pieces = source.randrange(len(wanted) - 8), [source.randbytes(8)]
        else:
            end += source.choice((0, BLOCK, 100 * BLOCK))
            sizes = source.choice(
                ([BLOCK], [100, 3 * BLOCK - 100], [2_000_000, 48_576 + 2 * BLOCK - 2_048_576 % BLOCK], [7000])
            )
            address, pieces = end, [source.randbytes(size) for size in sizes]
            end = (end + sum(map(len, pieces)) + BLOCK - 1) & -BLOCK
        data = b"".join(pieces)
        wanted.extend(bytes(max(0, address + len(data) - len(wanted))))
        wanted[address : address + len(data)] = data
        written += len(data)
        assert file.write(address, pieces) == len(data)
    file.flush()
    file.close()
    os.ftruncate(descriptor, len(wanted))
    assert Path(path).read_bytes() == wanted


def test_what_the_disk_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    path = str(tmp_path / "file")
    file = DirectFile(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    monkeypatch.setattr(direct_file.os, "pwrite", full)
    file.write(0, [b"x" * (1 << 20)])
    with pytest.raises(OSError, match="full"):
        file.flush()
    file.close()


def test_zeros_take_no_room(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    file = DirectFile(path, descriptor)
    for i in range(8):
        file.write(i << 20, [bytes(1 << 20)])
    file.write(8 << 20, [bytes(5000), b"end"])
    file.flush()
    file.close()
    assert Path(path).read_bytes().rstrip(b"\0") == bytes((8 << 20) + 5000) + b"end"
    assert os.fstat(descriptor).st_blocks * 512 <= 64 << 10
