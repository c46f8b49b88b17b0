"""Settings of what the daemon tells of itself beside its log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The daemon's own figures, for Prometheus, and labels for the kubelet's cAdvisor."""

    address: str = ""
    """host:port to serve /metrics on; empty: nowhere."""
    cadvisor_socket: str = ""
    """Socket on which the kubelet's built-in cAdvisor asks for containers' labels; it looks at /var/run/crio/crio.sock.
    Containers are then called crio-ID in the cgroup tree, which is what it looks for. Empty: nowhere."""

    @property
    def group_prefix(self) -> str:
        """What containers' cgroups are called, beside their id."""
        return "crio" if self.cadvisor_socket else ""


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """OpenTelemetry traces of all calls, by OTLP over gRPC. Needs the packages of `crisp[tracing]`."""

    endpoint: str = ""
    """http://host:port, or https: for TLS; empty: no traces."""
    sampling_ratio: float = 1.0
    """Share of the traces that begin here; those that a caller began are followed as the caller decided."""
