"""How one pull may ask one endpoint: with whose credentials, and for how long without an answer.

Credentials belong to an endpoint and are chosen once, before anything is sent:

    the endpoint is the registry that the reference names     the caller's, else the node's for the reference
    it is a mirror that the node's files know                 the node's for the mirror
    it is a mirror of a hosts.toml                            the caller's, as containerd sends them
    it is a mirror or another location of a registries.conf   none, as containers/image does it

The client binds them to the endpoint's origin: they follow no redirect and no Location.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from imagesvc.references import Reference
from imagesvc.registry import credentials
from imagesvc.registry.credentials import ANONYMOUS, Credentials
from imagesvc.registry.endpoint import Endpoint, registry_host

MIRROR_SECONDS = 15.0
"""Silence after which the next endpoint is asked, while there is one."""
_TRIES = 5
_SHORTEST = 10.0
"""A budget of silence is shared among so many requests, each of which has at least so many seconds of it: who hears nothing
for so long connects again."""


class Budget:
    """Seconds for which one pull goes on without a byte from any registry. Bytes give it back whole."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def touch(self) -> None:
        """Something has come."""
        self._last = time.monotonic()

    @property
    def used_up(self) -> bool:
        """Whether nothing has come for so long that no other request is worth it; the first one always has a second try."""
        return time.monotonic() - self._last >= max(self._seconds, 1.5 * self.share)

    @property
    def seconds(self) -> float:
        """All of it."""
        return self._seconds

    @property
    def share(self) -> float:
        """Seconds that one request may be silent."""
        return max(self._seconds / _TRIES, min(self._seconds, _SHORTEST))

    async def pause(self, seconds: float) -> None:
        """Waits before another try, which is no silence of the registry's."""
        await asyncio.sleep(seconds)
        self._last += seconds


@dataclass(frozen=True)
class Access:
    """One endpoint as one pull may use it. Texts of it show no secret."""

    endpoint: Endpoint
    credentials: Credentials
    budget: Budget
    has_alternative: bool = False
    """Whether another endpoint is asked if this one does not answer."""

    def silence(self, *, sending: bool) -> float:
        """Seconds without a byte after which a request is given up. A body that is sent has the whole budget."""
        if sending:
            return self.budget.seconds
        return min(self.budget.share, MIRROR_SECONDS) if self.has_alternative else self.budget.share

    def __str__(self) -> str:
        return str(self.endpoint)


def accesses(
    reference: Reference, endpoints: Sequence[Endpoint], given: Credentials, auth_files: Sequence[str], seconds: float
) -> list[Access]:
    """The endpoints of a reference with what each of them may see. Reads files: call it off the event loop."""
    budget = Budget(seconds)
    last = len(endpoints) - 1
    return [
        Access(endpoint, _credentials(reference, endpoint, given, auth_files), budget, has_alternative=i < last)
        for i, endpoint in enumerate(endpoints)
    ]


def reordered(chosen: Access, among: Sequence[Access]) -> list[Access]:
    """The one that has answered first, then the others."""
    others = [access for access in among if access is not chosen]
    ordered = [chosen, *others]
    return [replace(access, has_alternative=i < len(others)) for i, access in enumerate(ordered)]


def _credentials(reference: Reference, endpoint: Endpoint, given: Credentials, auth_files: Sequence[str]) -> Credentials:
    if credentials.same_host(endpoint.host, registry_host(reference.domain)):
        return given.for_host(endpoint.host) if not given.anonymous else credentials.from_files(reference, auth_files)
    own = credentials.of_name(f"{endpoint.host}/{endpoint.repository}", endpoint.host, auth_files)
    if not own.anonymous:
        return own
    return given.for_host(endpoint.host) if endpoint.shares_credentials else ANONYMOUS


def fingerprint(among: Sequence[Access], key: bytes) -> str:
    """Tells who asks: the same for the same credentials at the same endpoints."""
    prints = dict.fromkeys(access.credentials.fingerprint(key) for access in among)
    return next(iter(prints), "") if len(prints) < 2 else credentials.digest(key, "\n".join(prints))
