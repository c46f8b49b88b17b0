"""A file system that hangs, as a dead NFS does: whoever looks up a name in it waits in the kernel and cannot be killed.

It is FUSE served by hand (linux/fuse.h): the root can be looked at; a look-up of any name is read, so that it is out of a
signal's reach, and never answered. Closing /dev/fuse ends the connection, and every wait with an error.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
import threading
from pathlib import Path
from typing import Self

LOOKUP, GETATTR, INIT, FORGET, INTERRUPT, BATCH_FORGET = 1, 3, 26, 2, 36, 42
IN_HEADER = struct.Struct("=IIQQIIII")
OUT_HEADER = struct.Struct("=IiQ")
ROOT = struct.pack("=QIIQQQQQQIIIIIIIIII", 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0)
VERSION = struct.pack("=4I2H2I2H8I", 7, 31, 0, 0, 0, 0, 4096, 1, *(0,) * 10)

libc = ctypes.CDLL(None, use_errno=True)


class HungMount:
    """Mounted at `path` from here on until `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._stop_read, self._stop_write = os.pipe()
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if libc.mount(b"hung", os.fsencode(path), b"fuse", 0, options) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        self.waiting = threading.Event()
        """Somebody hangs."""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._device, self._stop_read], [], [])
            if self._stop_read in ready:
                return
            try:
                request = os.read(self._device, 1 << 16)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EAGAIN, errno.EINTR):
                    continue
                return
            _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
            if opcode == LOOKUP:
                self.waiting.set()
            elif opcode == INIT:
                self._answer(unique, VERSION)
            elif opcode == GETATTR:
                self._answer(unique, ROOT)
            elif opcode not in (FORGET, INTERRUPT, BATCH_FORGET):
                self._answer(unique, b"", -errno.ENOSYS)

    def _answer(self, unique: int, body: bytes, error: int = 0) -> None:
        os.write(self._device, OUT_HEADER.pack(OUT_HEADER.size + len(body), error, unique) + body)

    def release(self) -> None:
        """Let everybody go on who waits."""
        if self._device < 0:
            return
        os.write(self._stop_write, b"x")
        self._thread.join()
        os.close(self._device)
        self._device = -1
        libc.umount2(os.fsencode(self.path), 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        os.close(self._stop_read)
        os.close(self._stop_write)
