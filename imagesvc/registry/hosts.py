"""containerd's registry configuration: `<certs.d>/<host>/hosts.toml`.

    server = "https://registry-1.docker.io"          asked last; the registry itself where this is left out or empty
    [host."https://mirror.example"]                  asked first, in the order of the file
      capabilities = ["pull", "resolve", "push"]
      ca = "mirror.crt"                              or a list; relative to this directory
      client = [["client.cert", "client.key"]]       or one PEM file with both
      skip_verify = false
      override_path = false                          true: the URL's path is the API's root, no /v2 is added
      dial_timeout = "30s"
      [host."https://mirror.example".header]
        x-team = ["a"]

The same keys at the top of the file are for `server`. A directory without hosts.toml is read as Docker reads it: `*.crt`
are authorities, `*.cert` with `*.key` client certificates. Host directories are looked for as `host:port`, `host_port_`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import structlog

from imagesvc.references import Reference
from imagesvc.registry.endpoint import EVERYTHING, Endpoint, Tls, default_scheme, registry_host
from proto.errors import invalid

log = structlog.get_logger()

_HOST_KEYS = frozenset({"capabilities", "ca", "client", "skip_verify", "override_path", "dial_timeout", "header", "rewrite"})
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DEFAULT_DIAL_SECONDS = 30.0


def find(reference: Reference, certs_dirs: Sequence[str]) -> list[Endpoint] | None:
    """The endpoints of the first directory that has this host, else of the first `_default`, else None."""
    for name in (*_directory_names(reference.domain), "_default"):
        for certs_dir in certs_dirs:
            directory = os.path.join(certs_dir, name)
            if os.path.isdir(directory):
                return _from_directory(reference, directory)
    return None


def _directory_names(domain: str) -> tuple[str, ...]:
    host, colon, port = domain.rpartition(":")
    return (domain, f"{host}_{port}_") if colon else (domain,)


def _from_directory(reference: Reference, directory: str) -> list[Endpoint]:
    path = os.path.join(directory, "hosts.toml")
    try:
        with open(path, "rb") as stream:
            document = tomllib.load(stream)
    except FileNotFoundError:
        tls = _directory_tls(directory)
        scheme = default_scheme(reference.domain)
        schemes = ["https", "http"] if scheme == "http" and tls != Tls() else [scheme]
        host = registry_host(reference.domain)
        return [Endpoint(scheme=one, host=host, repository=reference.path, tls=tls) for one in schemes]
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise invalid(f"{path}: {error}") from None
    return parse(document, reference, path)


def parse(document: Mapping[str, Any], reference: Reference, path: str) -> list[Endpoint]:
    """The endpoints that one hosts.toml names for a reference; INVALID_ARGUMENT names the file and the key."""
    _tell_unknown(set(document) - _HOST_KEYS - {"server", "host"}, path)
    tables = document.get("host", {})
    if not isinstance(tables, dict):
        raise invalid(f"{path}: host is not a table")
    endpoints = [_endpoint(url, table, reference, path) for url, table in tables.items()]
    server = document.get("server")
    own = {key: value for key, value in document.items() if key in _HOST_KEYS}
    if server:
        endpoints.append(_endpoint(str(server), own, reference, path))
        return endpoints
    host = registry_host(reference.domain)
    schemes = [default_scheme(reference.domain)]
    if schemes == ["http"] and (own.get("ca") or own.get("client") or own.get("skip_verify")):
        schemes = ["https", "http"]  # a registry on loopback whose TLS is configured has TLS
    endpoints += [_endpoint(f"{scheme}://{host}", own, reference, path) for scheme in schemes]
    return endpoints


def _tell_unknown(keys: set[str], where: str) -> None:
    """containerd reads over what it does not know, and newer versions know more."""
    if keys:
        log.warning("keys of hosts.toml that are not known", file=where, keys=sorted(keys))


def _endpoint(url: str, table: Any, reference: Reference, path: str) -> Endpoint:
    if not isinstance(table, dict):
        raise invalid(f"{path}: host {url!r} is not a table")
    where = f"{path}: host {url!r}"
    _tell_unknown(set(table) - _HOST_KEYS, where)
    try:
        parts = urlsplit(url if "://" in url else f"{default_scheme(url.partition('/')[0])}://{url}")
    except ValueError as error:
        raise invalid(f"{where}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise invalid(f"{where} is not an http or https URL")
    capabilities = table.get("capabilities")
    if not capabilities:
        chosen = EVERYTHING
    else:
        named = frozenset(str(c).lower() for c in _as_list(capabilities, f"{where}: capabilities"))
        unknown = named - EVERYTHING - {"referrers"}
        if unknown:
            raise invalid(f"{where}: unknown capability {sorted(unknown)[0]!r}")
        chosen = named & EVERYTHING
    host = registry_host(parts.netloc)
    return Endpoint(
        scheme=parts.scheme,
        host=host,
        repository=_rewrite(reference.path, table.get("rewrite"), where),
        root=_root(parts.path, bool(table.get("override_path", False))),
        capabilities=chosen,
        tls=_tls(table, os.path.dirname(path), where),
        headers=_headers(table.get("header"), where),
        namespace="" if host == registry_host(reference.domain) else reference.domain,
        connect_timeout=_seconds(table.get("dial_timeout"), where),
    )


def _root(path: str, override: bool) -> str:
    """`/v2` is added unless the path ends in it or the administrator says that the path is the root."""
    path = path.rstrip("/")
    return path if override or path.endswith("/v2") else path + "/v2"


def _rewrite(repository: str, rules: Any, where: str) -> str:
    """K3s' `rewrite` table: the first regular expression that matches replaces what it matched."""
    if rules is None:
        return repository
    if not isinstance(rules, dict):
        raise invalid(f"{where}: rewrite is not a table")
    for pattern, replacement in rules.items():
        try:
            new, count = re.subn(pattern, re.sub(r"\$(\d+)", r"\\\1", str(replacement)), repository, count=1)
        except re.error as error:
            raise invalid(f"{where}: rewrite {pattern!r}: {error}") from None
        if count:
            return new
    return repository


def _headers(table: Any, where: str) -> tuple[tuple[str, str], ...]:
    if table is None:
        return ()
    if not isinstance(table, dict):
        raise invalid(f"{where}: header is not a table")
    return tuple((str(name), str(v)) for name, values in table.items() for v in _as_list(values, f"{where}: header"))


def _seconds(value: Any, where: str) -> float:
    if value is None:
        return _DEFAULT_DIAL_SECONDS
    text = str(value).removeprefix("+")
    parts = _DURATION.findall(text)
    if text != "0" and (not parts or "".join(number + unit for number, unit in parts) != text):
        raise invalid(f"{where}: dial_timeout {value!r} is not a duration such as '10s' or '1m30s'")
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts) or _DEFAULT_DIAL_SECONDS


def _tls(table: Mapping[str, Any], directory: str, where: str) -> Tls:
    ca_files = tuple(_beside(directory, str(f)) for f in _as_list(table.get("ca") or [], f"{where}: ca"))
    pairs: list[tuple[str, str]] = []
    for entry in _as_list(table.get("client") or [], f"{where}: client"):
        files = [_beside(directory, str(f)) for f in _as_list(entry, f"{where}: client")]
        if len(files) not in (1, 2):
            raise invalid(f"{where}: client takes a PEM file, or pairs of certificate and key")
        pairs.append((files[0], files[-1]))
    for name in (*ca_files, *(f for pair in pairs for f in pair)):
        if not os.path.isfile(name):
            raise invalid(f"{where}: no file {name}")
    return Tls(ca_files, tuple(pairs), bool(table.get("skip_verify", False)))


def docker_style(host: str, directories: Sequence[str]) -> Tls | None:
    """The certificates that Docker or Podman would use for a host, or None where no directory has any."""
    for parent in directories:
        directory = os.path.join(parent, host)
        if os.path.isdir(directory):
            return _directory_tls(directory)
    return None


def _directory_tls(directory: str) -> Tls:
    names = sorted(os.listdir(directory))
    pairs = []
    for name in names:
        stem, extension = os.path.splitext(name)
        if extension == ".cert":
            if stem + ".key" not in names:
                raise invalid(f"{directory}: {name} has no {stem}.key beside it")
            pairs.append((os.path.join(directory, name), os.path.join(directory, stem + ".key")))
    authorities = tuple(os.path.join(directory, name) for name in names if name.endswith(".crt"))
    return Tls(authorities, tuple(pairs))


def _beside(directory: str, name: str) -> str:
    return name if os.path.isabs(name) else os.path.join(directory, name)


def _as_list(value: Any, where: str) -> list[Any]:
    if isinstance(value, (str, int)):
        return [value]
    if not isinstance(value, list):
        raise invalid(f"{where} is neither a string nor a list")
    return value
