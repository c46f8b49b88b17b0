"""Resource limits of a container's process (setrlimit(2)): the node's defaults, and what a pod's annotation asks for.

    io.crisp.ulimits/<container>: "nofile=4096:8192,memlock=unlimited,core=0"      soft[:hard], -1 is unlimited too

Limits that decide over other pods' processor time (nice, rtprio, rttime) are the administrator's alone.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proto.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from runtime.config import ContainersConfig
    from runtime.host import Host

ANNOTATION: Final = "io.crisp.ulimits/"

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


def of_annotations(annotations: Mapping[str, str], container: str) -> dict[str, Ulimit]:
    """What a pod's annotations ask for a container."""
    key = ANNOTATION + container
    text = annotations.get(key, "")
    return parse(text.split(","), FOR_PODS, f"annotation {key}") if text.strip() else {}


def build(defaults: ContainersConfig, asked: Mapping[str, Ulimit], host: Host) -> list[dict[str, Any]]:
    """As in the OCI configuration, cut down to what the host lets the daemon give.

    Open files as systemd gives a service, not what the daemon happens to have.
    """
    limits = {
        "nofile": Ulimit(defaults.nofile_soft, defaults.nofile_hard),
        **parse(defaults.ulimits, FOR_ADMINISTRATORS, "containers.ulimits"),
        **asked,
    }
    found = []
    for name, limit in sorted(limits.items()):
        ceiling = _ceiling(name, host)
        found.append({"type": f"RLIMIT_{name.upper()}", "soft": min(limit.soft, ceiling), "hard": min(limit.hard, ceiling)})
    return found


def _ceiling(name: str, host: Host) -> int:
    """Nobody goes above fs.nr_open; and without CAP_SYS_RESOURCE, above what he has."""
    if name == "nofile":
        return host.nofile_limit
    if "CAP_SYS_RESOURCE" in host.capabilities:
        return UNLIMITED
    hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1] if _readable(name) else UNLIMITED
    return UNLIMITED if hard == resource.RLIM_INFINITY else hard


def _readable(name: str) -> bool:
    return hasattr(resource, f"RLIMIT_{name.upper()}")
