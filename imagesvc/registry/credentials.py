"""Who is asking: the CRI's AuthConfig, or the node's own config.json / auth.json.

A `Credentials` never shows its secrets: not in repr, not in logs. Its `fingerprint` tells two callers apart without
keeping what they know.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from imagesvc.references import DEFAULT_DOMAIN, Reference
from imagesvc.registry.endpoint import DOCKER_HUB_HOST
from proto.errors import invalid

_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HELPER_SECONDS = 30.0
_HUB_NAMES = frozenset({DEFAULT_DOMAIN, DOCKER_HUB_HOST, "index.docker.io", "hub.docker.com"})


@dataclass(frozen=True)
class Auth:
    """The fields of the CRI's AuthConfig, as they came."""

    username: str = ""
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)
    server_address: str = ""
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Credentials:
    """What is shown to a registry. At most one way is set; none is anonymous."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """An OAuth2 refresh token."""
    registry_token: str = field(default="", repr=False)
    """A bearer token to send as it is."""
    host: str = ""
    """The only host that may see these; "" for every endpoint that the administrator configured."""

    @property
    def anonymous(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.username or self.password or self.identity_token or self.registry_token)

    def for_host(self, host: str) -> Credentials:
        """These, or nobody's where they are meant for another host."""
        return self if not self.host or same_host(self.host, host) else ANONYMOUS

    def fingerprint(self, key: bytes) -> str:
        """Tells callers apart; without the node's key nothing can be guessed from it."""
        fields = (self.username, self.password, self.identity_token, self.registry_token, self.host)
        return digest(key, json.dumps(fields))


ANONYMOUS = Credentials()


def digest(key: bytes, text: str) -> str:
    """A keyed digest, of which nothing can be guessed without the key."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def from_auth(auth: Auth | None) -> Credentials:
    """Credentials of an AuthConfig: registry token, else identity token, else user and password, else `auth`.

    Raises:
        CrispError: INVALID_ARGUMENT for an `auth` that is not base64 of user:password.
    """
    if auth is None:
        return ANONYMOUS
    host = _host_of(auth.server_address)
    if auth.registry_token:
        return Credentials(registry_token=auth.registry_token, host=host)
    if auth.identity_token:
        return Credentials(identity_token=auth.identity_token, username=auth.username, host=host)
    if auth.username or auth.password:
        return Credentials(auth.username, auth.password, host=host)
    if auth.auth:
        username, password = _decode(auth.auth, "the auth field of the pull credentials")
        return Credentials(username, password, host=host)
    return ANONYMOUS


def from_files(reference: Reference, paths: Sequence[str]) -> Credentials:
    """The node's credentials for a reference, as `of_name`."""
    return of_name(reference.name, reference.domain, paths)


def of_name(name: str, host: str, paths: Sequence[str]) -> Credentials:
    """The node's credentials for a repository, which `host` alone may see: of the first file that has any. Reads files.

    Keys are tried from the most specific: `quay.io/team/app`, `quay.io/team`, `quay.io` (containers-auth.json(5)); Docker
    writes Docker Hub as `https://index.docker.io/v1/`. `credHelpers` of the host come first, `credsStore` last; both are
    programs `docker-credential-NAME`, which are run.
    """
    for path in paths:
        entry = _entry(name, host, path)
        if entry is None:
            continue
        found = from_auth(
            Auth(
                username=str(entry.get("username") or ""),
                password=str(entry.get("password") or ""),
                auth=str(entry.get("auth") or ""),
                identity_token=str(entry.get("identitytoken") or ""),
                registry_token=str(entry.get("registrytoken") or ""),
                server_address=host,
            )
        )
        if not found.anonymous:
            return found
    return ANONYMOUS


def _entry(name: str, host: str, path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as stream:
            document = json.load(stream)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise invalid(f"credentials file {path}: {error}") from None
    if not isinstance(document, dict):
        return None
    helpers = document.get("credHelpers")
    for key, helper in helpers.items() if isinstance(helpers, dict) else ():
        if same_host(_key(key).partition("/")[0], host):
            return _helped(str(helper), key, path)
    found = _stored(name, document)
    if found and any(found.values()):
        return found
    store = document.get("credsStore")
    if isinstance(store, str) and store:
        return _helped(store, "https://index.docker.io/v1/" if host in _HUB_NAMES else host, path)
    return found


def _helped(helper: str, key: str, path: str) -> dict[str, Any] | None:
    """What a credential helper says of a server; None where it knows nothing of it.

    https://github.com/docker/docker-credential-helpers: the server on stdin of `get`, JSON on stdout.
    """
    if not _HELPER.fullmatch(helper):
        raise invalid(f"credentials file {path}: {helper[:80]!r} is not the name of a credential helper")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
        said = json.loads(done.stdout) if not done.returncode else {}
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise invalid(f"credentials file {path}: {program} cannot be used: {type(error).__name__}") from None
    if not isinstance(said, dict) or not said.get("Secret"):
        return None
    if said.get("Username") == "<token>":
        return {"identitytoken": said["Secret"]}
    return {"username": said.get("Username"), "password": said["Secret"]}


def _stored(name: str, document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry of `auths`, the most specific one."""
    auths = document.get("auths")
    if not isinstance(auths, dict):
        return None
    by_name = {_key(key): value for key, value in auths.items() if isinstance(value, dict)}
    name = _key(name)
    while name:
        if name in by_name:
            return by_name[name]
        name = name.rpartition("/")[0]
    return None


def _key(name: str) -> str:
    """A key of `auths` without scheme and API version; Docker Hub under one name."""
    bare = name.partition("://")[2] or name
    bare = bare.rstrip("/").removesuffix("/v1").removesuffix("/v2")
    host, slash, path = bare.partition("/")
    return (DEFAULT_DOMAIN if host in _HUB_NAMES else host) + slash + path


def _host_of(server_address: str) -> str:
    if not server_address:
        return ""
    address = server_address if "://" in server_address else f"https://{server_address}"
    try:
        return urlsplit(address).netloc
    except ValueError:
        raise invalid(f"the pull credentials' server address {server_address[:200]!r} is no host") from None


def same_host(a: str, b: str) -> bool:
    """Whether two hosts, with their ports, are one; Docker Hub has several names."""
    return a == b or (a in _HUB_NAMES and b in _HUB_NAMES)


def _decode(value: str, where: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(value, validate=True).decode().rstrip("\0")
    except (binascii.Error, ValueError):
        raise invalid(f"{where} is not base64") from None
    username, colon, password = text.partition(":")
    if not colon:
        raise invalid(f"{where} is not user:password in base64")
    return username, password


def load_or_create_key(path: str) -> bytes:
    """The node's secret for fingerprints: 32 bytes in a file that root alone reads."""
    try:
        with open(path, "rb") as stream:
            key = stream.read()
        if len(key) == 32:
            return key
    except FileNotFoundError:
        pass
    key = os.urandom(32)
    descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(key)
        out.flush()
        os.fsync(out.fileno())
    os.rename(path + ".new", path)
    return key
