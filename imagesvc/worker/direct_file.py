"""Writing a new file past the page cache, where its file system can.

Nobody reads these pages soon; filling them, and having them written later, takes more time than all else that is done with
what they hold.

What is written in one go and begins at a block's boundary is gathered and goes to the disk itself (O_DIRECT); the rest,
small corrections, goes the usual way. The kernel keeps the two apart as long as no block gets both at once: what has been
gathered is written before anything else is. While one buffer is on its way to the disk, by a thread, the other is filled. A
buffer of zeros is left out: a hole of a new file reads so.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from imagesvc.limits import MIB
from kernel.descriptors import pwrite_all

_BLOCK = 4096
_SIZE = 1 * MIB
_IOV_MAX = 1024
_ZEROS = bytes(_SIZE)


class DirectFile:
    """The file at `path`, which `descriptor` has open for writing."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._descriptor = descriptor
        try:
            self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._direct = -1
        self._buffer, self._other = (memoryview(mmap.mmap(-1, _SIZE)) for _ in range(2))
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._start = 0
        self._filled = 0

    def write(self, address: int, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        """Writes these one after the other; returns how many bytes they have. Raises OSError."""
        if address != self._start + self._filled or not self._filled:
            if self._filled:
                self._send()
            if self._direct < 0 or address % _BLOCK:
                self._wait()
                return self._write_usually(address, buffers)
            self._start = address
        total = 0
        for data in buffers:
            length = len(data)
            total += length
            if length <= _SIZE - self._filled:
                self._buffer[self._filled : self._filled + length] = data
                self._filled += length
            else:
                self._gather(memoryview(data))
        return total

    def _gather(self, view: memoryview) -> None:
        while view:
            part = view[: _SIZE - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == _SIZE:
                self._send()

    def flush(self) -> None:
        """Writes what has been gathered, and zeros up to the end of the last block. Raises OSError."""
        if self._filled:
            self._send()
        self._wait()

    def close(self) -> None:
        """Ends the thread. What has not been flushed is lost."""
        self._thread.shutdown()
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _send(self) -> None:
        """Has the thread write the buffer, once it is done with the other one."""
        self._wait()
        filled, start = self._filled, self._start
        self._filled = 0
        self._start += filled
        end = (filled + _BLOCK - 1) & -_BLOCK
        self._buffer[filled:end] = bytes(end - filled)
        self._writing = self._thread.submit(self._put, self._buffer[:end], start)
        self._buffer, self._other = self._other, self._buffer

    def _put(self, data: memoryview, start: int) -> None:
        if data[:_BLOCK] == _ZEROS[:_BLOCK] and bytes(data) == _ZEROS[: len(data)]:
            return
        written = 0
        if self._direct >= 0:
            try:
                written = os.pwrite(self._direct, data, start)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                os.close(self._direct)  # it takes the flag and not the writes
                self._direct = -1
        pwrite_all(self._descriptor, data[written:], start + written)

    def _write_usually(self, address: int, buffers: Sequence[bytes | bytearray | memoryview]) -> int:
        position = address
        for start in range(0, len(buffers), _IOV_MAX):
            part = buffers[start : start + _IOV_MAX]
            length = sum(map(len, part))
            written = os.pwritev(self._descriptor, part, position)
            if written < length:
                pwrite_all(self._descriptor, memoryview(b"".join(part))[written:], position + written)
            position += length
        return position - address
