"""What the rest of the daemon knows of pod networks; `builtin.py` is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

NOT_READY: Final = "NetworkPluginNotReady"
"""The reason that the kubelet knows from other runtimes."""


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the host that leads into a pod."""

    protocol: str
    """tcp, udp or sctp."""
    container_port: int
    host_port: int
    """0: the mapping asks for nothing of the host."""
    host_ip: str = ""
    """Empty: every address of the host, in both families."""


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """A sandbox that wants its network."""

    sandbox_id: str
    netns_path: str
    """A pinned network namespace."""
    pod_name: str = ""
    pod_namespace: str = ""
    pod_uid: str = ""
    hostname: str = ""
    port_mappings: tuple[PortMapping, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """Those that the pod asks for: they win over a network's own."""
    dns_servers: tuple[str, ...] = ()
    dns_searches: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    cgroup_parent: str = ""
    runtime_handler: str = ""


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """A sandbox that has its network."""

    ips: tuple[str, ...]
    """Without prefix length; the first is PodSandboxStatus' `ip`, the others its `additional_ips`."""
    interface: str
    """Name inside the pod."""
    detail: dict[str, Any]
    """JSON for the sandbox record and for verbose status; nothing reads it back."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """The NetworkReady condition."""

    ready: bool
    reason: str = ""
    message: str = ""


class LeaseStore(Protocol):
    """Where leases outlive the daemon: JSON documents by sandbox id. `Store.leases` is one."""

    def items(self) -> list[tuple[str, Any]]:
        """All of them."""

    async def put(self, key: str, document: object) -> None:
        """Store or replace one; it survives the daemon's death from the moment this returns."""

    async def delete(self, key: str) -> None:
        """Remove one; success if there is none."""


class PodNetwork(Protocol):
    """Connects sandboxes that have a network namespace of their own."""

    async def start(self) -> None:
        """Make what all pods share, or mend what is left of it. Where that fails, `check` says why, and tries again."""

    async def close(self) -> None:
        """Let go of sockets and threads; the pods keep their network."""

    async def attach(self, request: NetworkRequest) -> NetworkResult:
        """Connect a sandbox. On failure nothing of it remains; after a crash in the middle, a repetition
        starts afresh."""

    async def detach(self, request: NetworkRequest) -> None:
        """Disconnect a sandbox; success if it is not connected, or if its namespace is gone."""

    async def check(self) -> Readiness:
        """Measure whether pods can be connected, mending what can be mended. Cheap enough for every Status
        call."""

    async def sweep(self, live_sandbox_ids: set[str]) -> None:
        """Remove whatever belongs to no living sandbox."""

    async def set_pod_cidrs(self, cidrs: Sequence[str]) -> None:
        """The node's share of the cluster's pod addresses, as the kubelet tells it; it may, again and again."""

    async def destroy(self) -> None:
        """Remove everything, what all pods share included."""
