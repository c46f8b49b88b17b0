"""Where an image is asked for: an ordered list of endpoints, read afresh at each pull.

    <certs.d>/<host>/hosts.toml           containerd's format        hosts.py
    <certs.d>/_default/hosts.toml         the same, for every other host
    registries.conf, registries.conf.d    containers-registries.conf(5)   registries_conf.py
    nothing configured                    https, or plain HTTP on loopback, as containerd does

The first of these that knows the host decides alone: merging two formats would leave nobody able to say which mirror is
asked first.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from imagesvc.references import DEFAULT_DOMAIN, Reference

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


def endpoints_for(reference: Reference, sources: EndpointSources) -> Sequence[Endpoint]:
    """The endpoints to try in order. Reads files: call it off the event loop.

    Raises:
        CrispError: INVALID_ARGUMENT for a file that cannot be read or understood, naming it; PERMISSION_DENIED for a
            registry that registries.conf blocks.
    """
    from imagesvc import hosts, registries_conf  # noqa: PLC0415  both need Endpoint from here

    configured = hosts.find(reference, sources.certs_dirs)
    if configured is not None:
        return configured
    configured = registries_conf.find(reference, sources)
    if configured is not None:
        return configured
    tls = hosts.docker_style(reference.domain, sources.docker_certs_dirs)
    return [default_endpoint(reference, tls)]


def default_endpoint(reference: Reference, tls: Tls | None = None) -> Endpoint:
    """The registry that the reference itself names."""
    return Endpoint(
        scheme=default_scheme(reference.domain),
        host=registry_host(reference.domain),
        repository=reference.path,
        tls=tls or Tls(),
    )


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
