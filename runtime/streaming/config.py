"""The [streaming] section of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from proto.errors import invalid


@dataclass(frozen=True, slots=True)
class StreamingConfig:
    """Where exec, attach and port-forward are served. Whoever reaches it still needs a token to do
    anything."""

    address: str = "127.0.0.1"
    """IP address to listen on; the kubelet dials it from the same host."""
    port: int = 0
    """0: whichever is free."""
    tls_certificate: str = ""
    """PEM file with the certificate chain; with `tls_key` URLs are https."""
    tls_key: str = ""
    """PEM file."""
    idle_timeout_seconds: float = 4 * 3600.0
    """A session without a byte in either direction for so long is closed."""
    stream_creation_timeout_seconds: float = 30.0
    """How long a client may take to open the streams it asked for."""

    def __post_init__(self) -> None:
        try:
            ip_address(self.address)
        except ValueError as error:
            raise invalid(f"address: {error}") from None
        if not 0 <= self.port <= 65535:
            raise invalid(f"port: {self.port} is not between 0 and 65535")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise invalid("tls_certificate and tls_key: give both or neither")
        if self.idle_timeout_seconds <= 0 or self.stream_creation_timeout_seconds <= 0:
            raise invalid("idle_timeout_seconds and stream_creation_timeout_seconds: must be above 0")
