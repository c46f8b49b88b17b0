"""containers-registries.conf(5), version 2: registries, prefixes, mirrors.

    [[registry]]
    prefix = "example.com/team"        longest match wins; "*.example.com" matches every host below
    location = "internal:5000/mirror"  replaces the prefix
    insecure = true                    plain HTTP, or HTTPS that is not verified
    blocked = false
    mirror-by-digest-only = false
    [[registry.mirror]]                asked first, in order
    location = "mirror:5000/team"
    insecure = true
    pull-from-mirror = "all"           or digest-only, tag-only

Files of registries.conf.d replace a registry of the same prefix, in the order of their names. Unqualified search and
aliases are not read: the kubelet compares names, so `nginx` has to mean one repository on every node.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from imagesvc.references import Reference
from imagesvc.registry.endpoint import (
    EVERYTHING,
    PULL,
    RESOLVE,
    Endpoint,
    EndpointSources,
    Tls,
    default_scheme,
    registry_host,
)
from imagesvc.registry.hosts import docker_style
from proto.errors import Code, CrispError, invalid

_MIRROR_MODES = ("all", "digest-only", "tag-only")


def find(reference: Reference, sources: EndpointSources) -> list[Endpoint] | None:
    """The endpoints of the registry whose prefix matches best, or None where no file has one."""
    registries: dict[str, Mapping[str, Any]] = {}
    for path in _files(sources):
        for registry in _load(path):
            registries[str(registry.get("prefix") or registry.get("location"))] = registry
    best = max((p for p in registries if _matches(p, reference)), key=len, default=None)
    if best is None:
        return None
    return endpoints(registries[best], best, reference, sources.docker_certs_dirs)


def _files(sources: EndpointSources) -> list[str]:
    paths = [sources.registries_conf] if os.path.isfile(sources.registries_conf) else []
    try:
        names = sorted(n for n in os.listdir(sources.registries_conf_dir) if n.endswith(".conf"))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    return paths + [os.path.join(sources.registries_conf_dir, name) for name in names]


def _load(path: str) -> list[Mapping[str, Any]]:
    try:
        with open(path, "rb") as stream:
            document = tomllib.load(stream)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise invalid(f"{path}: {error}") from None
    if "registries" in document:
        raise invalid(f"{path} has version 1 of the format (a `registries` table); rewrite it as `[[registry]]`")
    registries = document.get("registry", [])
    if not isinstance(registries, list) or not all(isinstance(r, dict) for r in registries):
        raise invalid(f"{path}: registry is not an array of tables")
    for registry in registries:
        if not (registry.get("prefix") or registry.get("location")):
            raise invalid(f"{path}: a registry has neither prefix nor location")
    return registries


def _matches(prefix: str, reference: Reference) -> bool:
    """Whether a prefix covers the reference: whole path components, or a wildcard for hosts."""
    if prefix.startswith("*."):
        return reference.domain.endswith(prefix[1:])
    full = str(reference)
    return full.startswith(prefix) and (len(full) == len(prefix) or full[len(prefix)] in "/:@")


def endpoints(registry: Mapping[str, Any], prefix: str, reference: Reference, certs_dirs: Sequence[str]) -> list[Endpoint]:
    """The mirrors of one registry that serve this kind of reference, then the registry itself."""
    if registry.get("blocked"):
        raise CrispError(Code.PERMISSION_DENIED, f"registries.conf blocks {prefix}, so {reference} cannot be pulled")
    digest_only = bool(registry.get("mirror-by-digest-only", False))
    found = []
    for mirror in registry.get("mirror", []):
        mode = mirror.get("pull-from-mirror") or ("digest-only" if digest_only else "all")
        if mode not in _MIRROR_MODES:
            raise invalid(f"registries.conf: pull-from-mirror {mode!r} of {prefix} is none of {', '.join(_MIRROR_MODES)}")
        if (mode == "digest-only" and not reference.digest) or (mode == "tag-only" and reference.digest):
            continue
        found += _endpoints(mirror, prefix, reference, certs_dirs, frozenset({PULL, RESOLVE}))
    found += _endpoints(registry, prefix, reference, certs_dirs, EVERYTHING)
    return found


def _endpoints(
    table: Mapping[str, Any],
    prefix: str,
    reference: Reference,
    certs_dirs: Sequence[str],
    capabilities: frozenset[str],
) -> list[Endpoint]:
    """One place; an insecure one is tried with HTTPS that is not verified, then with plain HTTP."""
    location = str(table.get("location") or "")
    if not location:
        full = reference.name
    elif prefix.startswith("*."):
        full = f"{location}/{reference.path}"
    else:
        full = location.rstrip("/") + reference.name[len(prefix) :]
    domain, slash, path = full.partition("/")
    if not slash:
        raise invalid(f"registries.conf: location {location!r} of {prefix} leaves no repository")
    tls = docker_style(domain, certs_dirs) or Tls()
    insecure = bool(table.get("insecure", False))
    if insecure:
        tls = Tls(tls.ca_files, tls.client_certificates, skip_verify=True)
    endpoint = Endpoint(
        default_scheme(domain),
        registry_host(domain),
        path,
        capabilities=capabilities,
        tls=tls,
        shares_credentials=False,
    )
    if insecure and endpoint.scheme == "https":
        return [endpoint, replace(endpoint, scheme="http")]
    return [endpoint]
