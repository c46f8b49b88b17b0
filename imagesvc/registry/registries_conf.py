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

    unqualified-search-registries = ["registry.example"]   for names without a registry, in order
    short-name-mode = "enforcing"      several of them are an error; "permissive", "disabled": they are tried in order
    [aliases]                          also of shortnames.conf
    "app" = "registry.example/team/app"

Files of registries.conf.d replace a registry, an alias or a setting of the same name, in the order of their names. A name
without a registry keeps being called docker.io's, whatever it leads to, as a name with another `location` keeps its own: the
kubelet compares names.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from imagesvc.references import DEFAULT_DOMAIN, Reference, parse_reference
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

_SHORT_NAME_KEYS = ("unqualified-search-registries", "short-name-mode")
_MIRROR_MODES = ("all", "digest-only", "tag-only")


def find(reference: Reference, sources: EndpointSources) -> list[Endpoint] | None:
    """The endpoints of the registry whose prefix matches best, or None where no file has one."""
    registries: dict[str, Mapping[str, Any]] = {}
    settings: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    for path in _files(sources):
        found, document = _load(path)
        settings |= {key: document[key] for key in _SHORT_NAME_KEYS if key in document}
        named = document.get("aliases") or {}
        aliases |= {str(k): str(v) for k, v in named.items()} if isinstance(named, dict) else {}
        for registry in found:
            registries[str(registry.get("prefix") or registry.get("location")).rstrip("/")] = registry
    if not reference.short:
        return _of(reference, registries, sources)
    places = _places(reference, settings, aliases)
    if not places:
        return _of(reference, registries, sources)
    chosen = []
    for place in places:
        chosen += _of(place, registries, sources) or [_plain(place, sources)]
    return [replace(endpoint, shares_credentials=False) for endpoint in chosen]


def _of(
    reference: Reference, registries: Mapping[str, Mapping[str, Any]], sources: EndpointSources
) -> list[Endpoint] | None:
    best = max((p for p in registries if _matches(p, reference)), key=len, default=None)
    if best is None:
        return None
    return endpoints(registries[best], best, reference, sources.docker_certs_dirs)


def _plain(reference: Reference, sources: EndpointSources) -> Endpoint:
    tls = docker_style(reference.domain, sources.docker_certs_dirs) or Tls()
    return Endpoint(default_scheme(reference.domain), registry_host(reference.domain), reference.path, tls=tls)


def _places(reference: Reference, settings: Mapping[str, Any], aliases: Mapping[str, str]) -> list[Reference]:
    """What a name without a registry leads to; nothing where that is docker.io alone."""
    name = reference.path.removeprefix("library/")
    suffix = f"@{reference.digest}" if reference.digest else f":{reference.tag}"
    if alias := aliases.get(name):
        return [parse_reference(alias + suffix)]
    registries = [str(r) for r in settings.get("unqualified-search-registries") or []]
    if registries in ([], [DEFAULT_DOMAIN]):
        return []
    if len(registries) > 1 and settings.get("short-name-mode") == "enforcing":
        raise invalid(
            f"registries.conf: {name} may be of {', '.join(registries)}, and short-name-mode is enforcing: name the registry"
        )
    return [parse_reference(f"{registry}/{name}{suffix}") for registry in registries]


def _files(sources: EndpointSources) -> list[str]:
    paths = [sources.registries_conf] if os.path.isfile(sources.registries_conf) else []
    try:
        names = sorted(n for n in os.listdir(sources.registries_conf_dir) if n.endswith(".conf"))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    return paths + [os.path.join(sources.registries_conf_dir, name) for name in names]


def _load(path: str) -> tuple[list[Mapping[str, Any]], Mapping[str, Any]]:
    """The registries of a file, and all of it."""
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
    return registries, document


def _matches(prefix: str, reference: Reference) -> bool:
    """Whether a prefix covers the reference: whole path components, or a wildcard for hosts."""
    return _matched(prefix, str(reference)) >= 0


def _matched(prefix: str, full: str) -> int:
    """Where the part of a name that a prefix covers ends, -1 if it covers none (refMatchingPrefix of containers/image)."""
    end = len(prefix)
    if prefix.startswith("*."):
        found = full.partition("/")[0].find(prefix[1:].partition("/")[0])
        if found <= 0 or not full.startswith(prefix[1:], found):
            return -1
        end = found + len(prefix) - 1
    elif not full.startswith(prefix):
        return -1
    return end if len(full) == end or full[end] in "/:@" else -1


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
    rest = reference.name[_matched(prefix, reference.name) :]
    full = location.rstrip("/") + rest if location else reference.name
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
