"""Resource limits of a container's process (setrlimit(2)): the node's defaults, and what a pod's annotation asks for.

    io.crisp.ulimits/<container>: "nofile=4096:8192,memlock=unlimited,core=0"      soft[:hard], -1 is unlimited too

Limits that decide over other pods' processor time (nice, rtprio, rttime) are the administrator's alone.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any, Final

from runtime.config.ulimits import FOR_PODS, UNLIMITED, Ulimit, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.host.host import Host

ANNOTATION: Final = "io.crisp.ulimits/"


def of_annotations(annotations: Mapping[str, str], container: str) -> dict[str, Ulimit]:
    """What a pod's annotations ask for a container."""
    key = ANNOTATION + container
    text = annotations.get(key, "")
    return parse(text.split(","), FOR_PODS, f"annotation {key}") if text.strip() else {}


def build(defaults: Mapping[str, Ulimit], asked: Mapping[str, Ulimit], host: Host) -> list[dict[str, Any]]:
    """As in the OCI configuration, cut down to what the host lets the daemon give."""
    found = []
    for name, limit in sorted({**defaults, **asked}.items()):
        most = ceiling(name, host)
        found.append({"type": f"RLIMIT_{name.upper()}", "soft": min(limit.soft, most), "hard": min(limit.hard, most)})
    return found


def ceiling(name: str, host: Host) -> int:
    """The most that can be given: nobody goes above fs.nr_open; and without CAP_SYS_RESOURCE, above what he has."""
    if name == "nofile":
        return host.nofile_limit
    if "CAP_SYS_RESOURCE" in host.capabilities:
        return UNLIMITED
    hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1] if _readable(name) else UNLIMITED
    return UNLIMITED if hard == resource.RLIM_INFINITY else hard


def _readable(name: str) -> bool:
    return hasattr(resource, f"RLIMIT_{name.upper()}")
