"""One place that may have a repository, and how it is reached."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from imagesvc.references import DEFAULT_DOMAIN

DOCKER_HUB_HOST = "registry-1.docker.io"
PULL, RESOLVE, PUSH = "pull", "resolve", "push"
EVERYTHING = frozenset({PULL, RESOLVE, PUSH})


@dataclass(frozen=True)
class Tls:
    """How an HTTPS endpoint is checked and how this node shows who it is. Paths of PEM files."""

    ca_files: tuple[str, ...] = ()
    client_certificates: tuple[tuple[str, str], ...] = ()
    skip_verify: bool = False


@dataclass(frozen=True)
class Endpoint:
    """One place that may have the repository."""

    scheme: str
    host: str
    """Host and port, as in a URL."""
    repository: str
    """The repository's name at this place, after rewrites."""
    root: str = "/v2"
    """Path of the API's root."""
    capabilities: frozenset[str] = EVERYTHING
    tls: Tls = Tls()
    headers: tuple[tuple[str, str], ...] = ()
    namespace: str = ""
    """The `ns` query parameter, by which a mirror of many registries learns which one is meant."""
    connect_timeout: float = 30.0
    """Seconds."""
    shares_credentials: bool = True
    """Whether it may see what the caller brought for the registry that it stands for."""

    def url(self, kind: str, name: str) -> str:
        """URL of a `manifests` or `blobs` object."""
        query = f"?ns={self.namespace}" if self.namespace else ""
        return f"{self.scheme}://{self.host}{self.root}/{self.repository}/{kind}/{name}{query}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}{self.root}/{self.repository}"


@dataclass(frozen=True)
class EndpointSources:
    """Where the node's administrator configures registries."""

    certs_dirs: tuple[str, ...] = ("/etc/crisp/certs.d", "/etc/containerd/certs.d")
    """Directories in containerd's format; the first that has the host, then the first that has `_default`."""
    registries_conf: str = "/etc/containers/registries.conf"
    """File in the format of containers-registries.conf(5), version 2; read at each pull."""
    registries_conf_dir: str = "/etc/containers/registries.conf.d"
    """Directory of further such files."""
    docker_certs_dirs: tuple[str, ...] = ("/etc/containers/certs.d", "/etc/docker/certs.d")
    """Directories of `<host>/{*.crt,*.cert,*.key}` for endpoints from registries.conf."""


def registry_host(domain: str) -> str:
    """The host that serves a domain: Docker Hub's differs from its name."""
    return DOCKER_HUB_HOST if domain == DEFAULT_DOMAIN else domain


def default_scheme(host: str) -> str:
    """Plain HTTP for loopback hosts on any port but 443, else HTTPS."""
    return "http" if is_loopback(host) and not host.endswith(":443") else "https"


def is_loopback(host: str) -> bool:
    """Whether host[:port] can only mean this machine."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") and host.rfind(":") > host.rfind("]") else host
    name = name.strip("[]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
