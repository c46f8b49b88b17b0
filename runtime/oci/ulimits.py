"""Resource limits of a container's process (setrlimit(2)): the node's defaults, and what a pod's annotation asks for.

    io.crisp.ulimits/<container>: "nofile=4096:8192,memlock=unlimited,core=0"      soft[:hard], -1 is unlimited too

It stands in the pod's annotations, or without the name in the container's own (`oci.asked`).

Limits that decide over other pods' processor time (nice, rtprio, rttime) are the administrator's alone.
"""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

from runtime.config.ulimits import FOR_PODS, UNLIMITED, Ulimit, parse
from runtime.oci import asked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proto import api_pb2 as cri
    from runtime.host.host import Host


def of_annotations(pod: Mapping[str, str], container: cri.ContainerConfig) -> dict[str, Ulimit]:
    """What a pod's annotations, or the container's own, ask for it."""
    key, text = asked.of_container(asked.ULIMITS, pod, container)
    return parse(text.split(","), FOR_PODS, f"annotation {key}") if text.strip() else {}


def build(defaults: Mapping[str, Ulimit], wanted: Mapping[str, Ulimit], host: Host) -> list[dict[str, Any]]:
    """As in the OCI configuration, cut down to what the host lets the daemon give."""
    found = []
    for name, limit in sorted({**defaults, **wanted}.items()):
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
