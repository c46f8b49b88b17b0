"""Settings of what the daemon tells of itself beside its log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The daemon's own figures, for Prometheus, and labels for the kubelet's cAdvisor."""

    address: str = ""
    """host:port to serve /metrics on; empty: nowhere."""
    cadvisor_socket: str = "/run/containerd/containerd.sock"
    """Socket on which the kubelet's built-in cAdvisor asks for containers' labels and pods' network: it asks containerd
    there, or where the kubelet's option --containerd says. Left alone if another program listens on it. Empty: nowhere."""


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """OpenTelemetry traces of all calls, by OTLP over gRPC. Needs the packages of `crisp[tracing]`."""

    endpoint: str = ""
    """http://host:port, or https: for TLS; empty: no traces."""
    sampling_ratio: float = 1.0
    """Share of the traces that begin here; those that a caller began are followed as the caller decided."""
