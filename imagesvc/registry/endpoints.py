"""Where an image is asked for: an ordered list of endpoints, read afresh at each pull.

    <certs.d>/<host>/hosts.toml           containerd's format        hosts.py
    <certs.d>/_default/hosts.toml         the same, for every other host
    registries.conf, registries.conf.d    containers-registries.conf(5)   registries_conf.py
    nothing configured                    https, or plain HTTP on loopback, as containerd does

The first of these that knows the host decides alone: merging two formats would leave nobody able to say which mirror is
asked first.
"""

from __future__ import annotations

from collections.abc import Sequence

from imagesvc.references import Reference
from imagesvc.registry import hosts, registries_conf
from imagesvc.registry.endpoint import Endpoint, EndpointSources, Tls, default_scheme, registry_host


def endpoints_for(reference: Reference, sources: EndpointSources) -> Sequence[Endpoint]:
    """The endpoints to try in order. Reads files: call it off the event loop.

    Raises:
        CrispError: INVALID_ARGUMENT for a file that cannot be read or understood, naming it; PERMISSION_DENIED for a
            registry that registries.conf blocks.
    """

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
