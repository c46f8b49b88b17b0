"""Sysctls below net, of this thread's network namespace."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from proto.errors import Code, CrispError

SYSCTLS: Final = "/proc/sys/net"


def read_sysctl(key: str) -> str:
    """A value below net, empty if the kernel has no such key."""
    with contextlib.suppress(FileNotFoundError), open(f"{SYSCTLS}/{key}", encoding="ascii") as file:
        return file.read().strip()
    return ""


def set_sysctl(key: str, value: str, *, if_there: bool = False) -> None:
    """Set a value below net unless it is that already, as /proc/sys may be read-only, or unless the kernel has no such key
    and that does not matter. Raises FAILED_PRECONDITION."""
    found = read_sysctl(key)
    if found == value or (if_there and not found):
        return
    try:
        with open(f"{SYSCTLS}/{key}", "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        name = f"net.{key.replace('/', '.')}"
        raise CrispError(
            Code.FAILED_PRECONDITION, f"cannot set sysctl {name}={value}: {os.strerror(error.errno or 0)}"
        ) from None
