"""Registry authentication without I/O: challenges in, the next request out.

    401 + WWW-Authenticate ──parse_challenges──▶ Challenge ──answer──▶ Basic header
                                                                └────▶ TokenRequest ──(HTTP)──▶ parse_token ──▶ Token

Bearer is the distribution token protocol: GET with Basic credentials, or, with a refresh token, an OAuth2 POST. RFC 7235
section 4.1 lets one header hold several challenges, and registries do that.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from imagesvc.registry.credentials import Credentials
from imagesvc.registry.endpoint import is_loopback
from proto.errors import Code, CrispError

_CLIENT_ID = "crisp"
_DEFAULT_LIFETIME = 60.0
"""Seconds. Distribution: "If omitted, this defaults to 60 seconds"."""
_LONGEST_LIFETIME = 86400.0
"""Seconds; a number of JSON may be beyond any float."""
_EXPIRY_MARGIN = 10.0
"""Seconds by which a token is given up early, so that none expires on its way."""

# RFC 7235: auth-param = token BWS "=" BWS ( token / quoted-string )
_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SCHEME = re.compile(rf"[\s,]*({_WORD})(?:\s*,\s*|\s+|\Z)")
_PRINTABLE = re.compile(r"[!-~]+")
"""What a token in a header may be made of."""
_TOKEN68 = re.compile(r"[A-Za-z0-9\-._~+/]+=*\s*(?:,|\Z)")
_PARAM = re.compile(rf"\s*({_WORD})\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|({_WORD}))\s*(?:,|\Z)")


@dataclass(frozen=True)
class Challenge:
    """One way in that the server offers; the scheme in lower case."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class TokenRequest:
    """The HTTP request that fetches a token. `body` is empty for GET."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Token:
    """A bearer token and the time, on the caller's clock in seconds, from which it is no longer used."""

    value: str = field(repr=False)
    expires: float


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate headers, in order; what cannot be understood ends its header."""
    found: list[Challenge] = []
    for header in headers:
        position = 0
        while match := _SCHEME.match(header, position):
            position = match.end()
            parameters: dict[str, str] = {}
            token = _TOKEN68.match(header, position)
            if token and not _SCHEME.fullmatch(token.group()):  # else it is the next scheme: `Negotiate, Basic`
                position = token.end()
            while param := _PARAM.match(header, position):
                name, quoted, plain = param.groups()
                parameters[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                position = param.end()
            found.append(Challenge(match.group(1).lower(), parameters))
    return found


def basic_header(credentials: Credentials) -> str:
    """The Authorization value for user and password."""
    pair = f"{credentials.username}:{credentials.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def choose(challenges: Sequence[Challenge]) -> Challenge | None:
    """Bearer before Basic: it sends the password to the token server alone."""
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme:
                return challenge
    return None


def token_request(challenge: Challenge, credentials: Credentials, scopes: Sequence[str], https: bool) -> TokenRequest:
    """The request to the token server that a Bearer challenge names.

    Raises:
        CrispError: UNAUTHENTICATED for a realm that is missing or no HTTP URL, or that would carry a password from an
            HTTPS registry to a plain HTTP server.
    """
    realm = challenge.parameters.get("realm", "")
    try:
        parts = urlsplit(realm)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise CrispError(Code.UNAUTHENTICATED, f"the registry names no usable token server (realm {realm!r})")
    if https and parts.scheme == "http" and not credentials.anonymous and not is_loopback(parts.netloc):
        raise CrispError(
            Code.UNAUTHENTICATED, f"the token server {realm} is plain HTTP; credentials are not sent there in the clear"
        )
    service = challenge.parameters.get("service", "")
    if credentials.identity_token:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": credentials.identity_token,
            "service": service,
            "client_id": _CLIENT_ID,
            "scope": " ".join(scopes),
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return TokenRequest("POST", realm, headers, urlencode(form).encode())
    query = parse_qsl(parts.query)
    if service:
        query.append(("service", service))
    query += [("scope", scope) for scope in scopes]
    headers = {} if credentials.anonymous else {"Authorization": basic_header(credentials)}
    if not credentials.anonymous:
        query.append(("account", credentials.username))
    return TokenRequest("GET", urlunsplit(parts._replace(query=urlencode(query))), headers)


def parse_token(body: bytes, now: float) -> Token:
    """Reads a token server's 200 answer; UNAUTHENTICATED where it has no token."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise CrispError(Code.UNAUTHENTICATED, "the token server's answer is not JSON")
    value = document.get("access_token") or document.get("token")
    if not isinstance(value, str) or not _PRINTABLE.fullmatch(value):
        raise CrispError(Code.UNAUTHENTICATED, "the token server's answer has no token")
    lifetime = document.get("expires_in")
    seconds = float(min(lifetime, _LONGEST_LIFETIME)) if isinstance(lifetime, (int, float)) and lifetime > 0 else 0.0
    seconds = seconds or _DEFAULT_LIFETIME
    return Token(value, now + max(seconds - _EXPIRY_MARGIN, seconds / 2))


def pull_scope(repository: str) -> str:
    """The scope that reading a repository needs."""
    return f"repository:{repository}:pull"


def push_scope(repository: str) -> str:
    """The scope that writing a repository needs."""
    return f"repository:{repository}:pull,push"
