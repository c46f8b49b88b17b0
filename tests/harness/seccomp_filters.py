"""The seccomp filters that a process has, as the kernel tells a tracer (PTRACE_SECCOMP_GET_FILTER, ptrace(2))."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

SEIZE: Final = 0x4206
INTERRUPT: Final = 0x4207
GET_FILTER: Final = 0x420C
DETACH: Final = 17
WALL: Final = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def of(pid: int) -> list[bytes]:
    """Programs of 8 bytes an instruction, the last that was installed first."""
    _ptrace(SEIZE, pid)
    try:
        _ptrace(INTERRUPT, pid)
        os.waitpid(pid, WALL)
        found: list[bytes] = []
        while True:
            try:
                count = _ptrace(GET_FILTER, pid, len(found))
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return found
                raise
            program = ctypes.create_string_buffer(count * 8)
            _ptrace(GET_FILTER, pid, len(found), ctypes.addressof(program))
            found.append(program.raw)
    finally:
        _ptrace(DETACH, pid)


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    result: int = _libc.ptrace(request, pid, address, data)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {pid}")
    return result
