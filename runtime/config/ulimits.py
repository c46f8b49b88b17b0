"""Resource limits of processes (setrlimit(2)) as people write them: `nofile=4096:8192`, `memlock=unlimited`, `core=0`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from proto.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Iterable

UNLIMITED: Final = 2**64 - 1
"""RLIM_INFINITY."""

FOR_PODS: Final = frozenset(
    ("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nofile", "nproc", "rss", "sigpending", "stack")
)
FOR_ADMINISTRATORS: Final = FOR_PODS | {"nice", "rtprio", "rttime"}


class Ulimit(NamedTuple):
    """One limit."""

    soft: int
    hard: int


def parse(entries: Iterable[str], known: frozenset[str], where: str) -> dict[str, Ulimit]:
    """`name=soft[:hard]` each; INVALID_ARGUMENT names `where` and the entry."""
    found = {}
    for entry in entries:
        name, equals, value = entry.strip().partition("=")
        name = name.strip().lower().removeprefix("rlimit_")
        if not equals or name not in known:
            raise invalid(f"{where}: {entry!r} must be NAME=SOFT[:HARD], NAME one of {', '.join(sorted(known))}")
        soft, colon, hard = value.partition(":")
        limit = Ulimit(_number(soft, entry, where), _number(hard if colon else soft, entry, where))
        if limit.soft > limit.hard:
            raise invalid(f"{where}: {entry!r}: the soft limit is above the hard one")
        found[name] = limit
    return found


def _number(text: str, entry: str, where: str) -> int:
    text = text.strip()
    if text in ("unlimited", "-1"):
        return UNLIMITED
    if not (text.isascii() and text.isdigit()) or int(text) > UNLIMITED:
        raise invalid(f"{where}: {entry!r}: {text!r} is no limit")
    return int(text)
