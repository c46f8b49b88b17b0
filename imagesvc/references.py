"""Image references: what people write, and the one form that everything else here uses.

    nginx                        docker.io/library/nginx:latest
    team/app:v1                  docker.io/team/app:v1
    localhost:5000/a@sha256:..   localhost:5000/a@sha256:..
    quay.io/x/y:v1@sha256:..     quay.io/x/y@sha256:..      the digest decides, the tag is dropped

The kubelet adds `:latest` but no `docker.io/`. Grammar: distribution/reference,

    reference := name [ ":" tag ] [ "@" digest ]
    name      := [domain '/'] path-component ['/' path-component]*
    domain    := host [':' port-number]        only if it has a '.', a ':' or is `localhost`
    path-component := [a-z0-9]+ (('.' | '_' | '__' | '-'+) [a-z0-9]+)*
    tag       := [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}
    digest    := algorithm ':' hex
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from proto.errors import CrispError, invalid

DEFAULT_DOMAIN = "docker.io"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library"
_DEFAULT_TAG = "latest"
_MAX_NAME = 255

_ALNUM = "[a-z0-9]+"
_COMPONENT = rf"{_ALNUM}(?:(?:\.|_|__|-+){_ALNUM})*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*\Z")
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9a-fA-F:.]+\])(?::[0-9]+)?\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_HEX = {"sha256": 64, "sha512": 128}
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})\Z")


STEPS = "localhost/crisp-build"
"""The repository of what builds keep: its tags are the keys of their steps."""


@dataclass(frozen=True)
class Reference:
    """A normalised reference: exactly one of `tag` and `digest` is set."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""
    short: bool = field(default=False, compare=False)
    """Whether it was written without a registry."""

    @property
    def name(self) -> str:
        """The repository with its registry: `docker.io/library/nginx`."""
        return f"{self.domain}/{self.path}"

    @property
    def object(self) -> str:
        """What a registry's `/manifests/` URL ends in."""
        return self.digest or self.tag

    def with_digest(self, digest: str) -> str:
        """The digest reference of this repository, as `repo_digests` lists it."""
        return f"{self.name}@{digest}"

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def parse_reference(text: str) -> Reference:
    """Normalises what was written.

    Raises:
        CrispError: INVALID_ARGUMENT, naming the part of the reference that is wrong.
    """
    if not text or text != text.strip():
        raise invalid(f"image reference {text!r} is empty or has spaces around it")
    rest, at, digest = text.partition("@")
    if at:
        check_digest(digest, f"image reference {text!r}")
    domain, whole = _split_domain(rest)
    short, rest = whole == rest, whole
    path, tag = rest, ""
    colon = rest.rfind(":")
    if colon > rest.rfind("/"):
        path, tag = rest[:colon], rest[colon + 1 :]
        if not _TAG.match(tag):
            raise invalid(f"image reference {text!r}: {tag!r} is not a tag")
    if not _DOMAIN.match(domain) or not _is_host(domain):
        raise invalid(f"image reference {text!r}: {domain!r} is not a registry host")
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"{_OFFICIAL}/{path}"
    if not _PATH.match(path):
        raise invalid(f"image reference {text!r}: {path!r} is not a repository (lower case, digits and . _ - / only)")
    if len(domain) + 1 + len(path) > _MAX_NAME:
        raise invalid(f"image reference {text!r}: a repository name has at most {_MAX_NAME} characters")
    if digest:
        return Reference(domain, path, digest=digest, short=short)
    return Reference(domain, path, tag=tag or _DEFAULT_TAG, short=short)


def _is_host(domain: str) -> bool:
    """What the grammar lets through and nobody can look up: ports, labels and names that are too long, no addresses."""
    host, _, port = domain.rpartition(":") if not domain.endswith("]") and ":" in domain else (domain, "", "1")
    if len(port) > 5 or not 0 < int(port) < 65536 or len(host) > 253:
        return False
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
        return True
    return all(0 < len(label) < 64 for label in host.rstrip(".").split("."))


def _split_domain(name: str) -> tuple[str, str]:
    """Splits off the registry host, which is one only when it looks like one."""
    first, slash, rest = name.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        return DEFAULT_DOMAIN, name
    return (DEFAULT_DOMAIN if first == _LEGACY_DOMAIN else first), rest


def check_digest(digest: str, where: str) -> str:
    """Returns the digest if it is one this project can verify; INVALID_ARGUMENT otherwise, saying where it stood."""
    algorithm, colon, value = digest.partition(":")
    if not colon or algorithm not in _HEX:
        raise invalid(f"{where}: {digest[:160]!r} is not a sha256 or sha512 digest")
    if len(value) != _HEX[algorithm] or value.strip("0123456789abcdef"):
        raise invalid(f"{where}: {digest[:160]!r} needs {_HEX[algorithm]} lower-case hexadecimal digits")
    return digest


def is_digest(text: str) -> bool:
    """Whether `check_digest` takes it."""
    try:
        check_digest(text, "")
    except CrispError:
        return False
    return True


def id_prefix(text: str) -> str | None:
    """The hexadecimal digits of what may be an image id or the start of one, else None."""
    match = _ID.match(text)
    return match.group(1) if match else None


def try_parse(text: str) -> Reference | None:
    """`parse_reference` for look-ups, where a malformed name is just one that nothing has."""
    try:
        return parse_reference(text)
    except CrispError:
        return None


def is_step(name: str) -> bool:
    """Whether a name is one that a build gives to the image after a step, to find it again."""
    return name.startswith((f"{STEPS}:", f"{STEPS}@"))
