"""One-use tokens: a request made over gRPC, waiting for the client that will fetch it over HTTP."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from proto.errors import Code, CrispError

T = TypeVar("T")

TOKEN_BYTES: Final = 24
"""Of randomness; nobody guesses a token, though it alone lets one into a container."""

LIFETIME_SECONDS: Final = 60.0
MAX_WAITING: Final = 1000


class Tokens(Generic[T]):
    """Requests by token."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[str, tuple[float, T]] = {}

    def issue(self, request: T) -> str:
        """A token for a request. Raises RESOURCE_EXHAUSTED when MAX_WAITING others wait."""
        self._expire()
        if len(self._waiting) >= MAX_WAITING:
            raise CrispError(
                Code.RESOURCE_EXHAUSTED,
                f"{MAX_WAITING} exec, attach and port-forward requests wait for their clients: try again in a minute",
            )
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._waiting[token] = (self._clock() + LIFETIME_SECONDS, request)
        return token

    def redeem(self, token: str) -> T | None:
        """The token's request, once, and within its lifetime."""
        self._expire()
        _, request = self._waiting.pop(token, (0.0, None))
        return request

    def _expire(self) -> None:
        """All live equally long, so the oldest come first."""
        now = self._clock()
        while self._waiting:
            token, (deadline, _) = next(iter(self._waiting.items()))
            if deadline > now:
                break
            del self._waiting[token]
