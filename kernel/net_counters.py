"""Traffic counters of network interfaces, read from inside network namespaces.

A pod's namespace may hold no process that could be asked through /proc/PID, so a thread enters it. setns(2) changes one
thread, and one that could not come back must do no other work: the thread visits all namespaces that were asked for, one
after the other, and ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import NamedTuple

from kernel import syscalls

_DEV = "/proc/thread-self/net/dev"


class Interface(NamedTuple):
    """Counters since the interface was made; bytes and packets."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


def read_many(paths: Iterable[str]) -> dict[str, list[Interface]]:
    """Interfaces by pinned namespace, without loopback; a namespace that is gone is left out. Blocks."""
    wanted, found = list(paths), dict[str, list[Interface]]()

    def visit() -> None:
        for path in wanted:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                syscalls.setns(fd, syscalls.CLONE_NEWNET)
                with open(_DEV, "rb") as file:
                    found[path] = parse(file.read())
            except OSError:
                continue  # an empty file whose namespace went with a reboot
            finally:
                os.close(fd)

    if wanted:
        thread = threading.Thread(target=visit, name="counters")
        thread.start()
        thread.join()
    return found


def parse(text: bytes) -> list[Interface]:
    """/proc/net/dev: two lines of header, then `name: 8 numbers received, 8 numbers sent`."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(b":")
        values = [int(value) for value in rest.split()]
        if len(values) >= 12 and name.strip() != b"lo":
            found.append(Interface(os.fsdecode(name.strip()), *values[0:4], *values[8:12]))
    return found
