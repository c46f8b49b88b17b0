"""What processes hold open, from /proc/PID/fd."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

_MOST_LINKS = 10_000
"""Links that are read to tell sockets from files; each is a system call."""


class OpenFiles(NamedTuple):
    """Over all processes that were asked about; `sockets` stops rising after 10 000 descriptors."""

    descriptors: int
    sockets: int


def count(pids: Iterable[int]) -> OpenFiles:
    """Count for these processes; one that is gone counts nothing."""
    descriptors = sockets = 0
    for pid in pids:
        directory = f"/proc/{pid}/fd"
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        readable = names[: max(0, _MOST_LINKS - descriptors)]
        descriptors += len(names)
        for name in readable:
            try:
                sockets += os.readlink(f"{directory}/{name}").startswith("socket:")
            except OSError:
                continue  # closed meanwhile
    return OpenFiles(descriptors, sockets)


def soft_limit_of_files(pid: int) -> int | None:
    """`Max open files` of a process; None if it is gone."""
    try:
        with open(f"/proc/{pid}/limits", encoding="ascii") as file:
            for line in file:
                if line.startswith("Max open files"):
                    value = line.split()[3]
                    return int(value) if value.isdigit() else None
    except OSError:
        return None
    return None
