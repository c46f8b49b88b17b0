"""What registries do wrong, and how that is told to the person who pulls.

A `RegistryFailure` is what one endpoint did. When no endpoint is left, `give_up` makes the one CrispError that leaves the
image service, with a line for each endpoint tried.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Sequence

from proto.errors import Code, CrispError

_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,9})?")


class Kind(enum.IntEnum):
    """Why an endpoint did not serve; the higher of two kinds is the more telling one."""

    NOT_FOUND = 1
    UNAVAILABLE = 2
    """It cannot be reached, it is overloaded, or it fails (5xx)."""
    BROKEN = 3
    """It answers, but not as a registry does, or with the wrong bytes."""
    DENIED = 4
    UNAUTHENTICATED = 5


class RegistryFailure(Exception):
    """One endpoint did not serve. `retry_after` is in seconds, None where trying again at once would not help."""

    def __init__(self, kind: Kind, message: str, retry_after: float | None = None) -> None:
        # It quotes what a stranger has sent, which need not be text, and goes into logs and answers.
        self.message = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in message)
        super().__init__(self.message)
        self.kind = kind
        self.retry_after = retry_after


_CODES = {
    Kind.NOT_FOUND: Code.NOT_FOUND,
    Kind.UNAVAILABLE: Code.UNKNOWN,
    Kind.BROKEN: Code.UNKNOWN,
    Kind.DENIED: Code.PERMISSION_DENIED,
    Kind.UNAUTHENTICATED: Code.UNAUTHENTICATED,
}


def give_up(what: str, attempts: Sequence[tuple[str, RegistryFailure]]) -> CrispError:
    """The error for a reference that no endpoint served.

    The kubelet finds `RegistryUnavailable` by the prefix of the message, and only with the code UNKNOWN.
    """
    if not attempts:
        return CrispError(Code.NOT_FOUND, f"{what}: no endpoint is configured that may serve it")
    kind = max(failure.kind for _, failure in attempts)
    lines = "".join(f"\n  {endpoint}: {failure.message}" for endpoint, failure in attempts)
    summary = {
        Kind.NOT_FOUND: f"{what}: not found",
        Kind.UNAVAILABLE: f"RegistryUnavailable: {what}: no registry could be reached",
        Kind.BROKEN: f"{what}: the registry's answer cannot be used",
        Kind.DENIED: f"{what}: the registry denies access with these credentials",
        Kind.UNAUTHENTICATED: f"{what}: the registry asks for valid credentials",
    }[kind]
    return CrispError(_CODES[kind], summary + lines)


def from_status(status: int, body: bytes, retry_after: str | None) -> RegistryFailure:
    """The failure that an HTTP status other than the expected means."""
    said = _first_error(body)
    text = f"HTTP {status}" + (f" {said}" if said else "")
    if status == 404:
        return RegistryFailure(Kind.NOT_FOUND, text)
    if status == 401:
        return RegistryFailure(Kind.UNAUTHENTICATED, text)
    if status == 403:
        return RegistryFailure(Kind.DENIED, text)
    if status in (408, 429) or status >= 500:
        return RegistryFailure(Kind.UNAVAILABLE, text, _seconds(retry_after))
    return RegistryFailure(Kind.BROKEN, text)


def _first_error(body: bytes) -> str:
    """`{"errors": [{"code": ..., "message": ...}]}`, as the distribution specification has it; else a short quotation."""
    try:
        errors = json.loads(body)["errors"]
        first = errors[0]
        text = f"{first.get('code', '')}: {first.get('message', '')}"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        text = "" if body.lstrip().startswith(b"<") else body[:200].decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in text).strip(" :")[:300]


def _seconds(retry_after: str | None) -> float:
    """Retry-After in its number form; registries do not use the date."""
    text = (retry_after or "").strip()
    return min(float(text), 30.0) if _NUMBER.fullmatch(text) else 0.0
