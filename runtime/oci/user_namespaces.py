"""User namespaces of pods (hostUsers: false): what the kubelet asks for, checked, in the forms that others need.

One line maps the uids and one the gids, from 0 inside: that is what the kubelet sends, and what an idmapped mount of a whole
image can express.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proto import api_pb2 as cri
from proto.errors import failed_precondition, invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.host.handlers import Handler


@dataclass(frozen=True, slots=True)
class Range:
    """Ids from 0 on inside are ids from `host` on outside."""

    host: int
    count: int

    def oci(self) -> list[dict[str, int]]:
        """As in the OCI configuration."""
        return [{"containerID": 0, "hostID": self.host, "size": self.count}]

    def shim(self) -> list[list[int]]:
        """As the shim's jobs expect it."""
        return [[0, self.host, self.count]]


@dataclass(frozen=True, slots=True)
class Mapping:
    """Of the users and of the groups of a pod."""

    uids: Range
    gids: Range


def mapping(config: cri.PodSandboxConfig) -> Mapping | None:
    """The mapping of a pod; None if it uses the node's users. INVALID_ARGUMENT for what cannot be."""
    options = config.linux.security_context.namespace_options
    if not options.HasField("userns_options"):
        return None
    asked = options.userns_options
    if asked.mode == cri.NODE:
        if asked.uids or asked.gids:
            raise invalid("user namespace: mappings were given, but the mode is NODE")
        return None
    if asked.mode != cri.POD:
        raise invalid(f"user namespace: mode {cri.NamespaceMode.Name(asked.mode)} is neither POD nor NODE")
    return Mapping(_single(asked.uids, "uid"), _single(asked.gids, "gid"))


def _single(lines: Sequence[cri.IDMapping], kind: str) -> Range:
    if len(lines) != 1:
        raise invalid(f"user namespace: exactly one {kind} mapping is supported, not {len(lines)}")
    [line] = lines
    if line.container_id != 0:
        raise invalid(f"user namespace: the {kind} mapping must begin at 0 in the container, not at {line.container_id}")
    if line.length == 0:
        raise invalid(f"user namespace: the {kind} mapping is empty")
    return Range(line.host_id, line.length)


def check(config: cri.PodSandboxConfig, handler: Handler) -> None:
    """Raise if the pod wants a user namespace that it cannot have."""
    if mapping(config) is not None and not handler.features.user_namespaces:
        raise failed_precondition(
            f"user namespaces: runtime handler {handler.name} ({handler.features.version}) has none on this host: "
            f"{handler.features.no_user_namespaces}"
        )


def mount_options(mount: cri.Mount) -> dict[str, Any]:
    """What a volume with mappings needs in the OCI configuration; the kubelet sends the pod's own."""
    if not mount.uidMappings and not mount.gidMappings:
        return {}
    uids, gids = _single(mount.uidMappings, "uid"), _single(mount.gidMappings, "gid")
    return {"uidMappings": uids.oci(), "gidMappings": gids.oci()}
