from __future__ import annotations

import pytest

from proto.errors import Code, CrispError
from runtime.streaming.tokens import LIFETIME_SECONDS, MAX_WAITING, Tokens


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_token_works_once() -> None:
    tokens: Tokens[str] = Tokens()
    token = tokens.issue("request")
    assert tokens.redeem(token) == "request"
    assert tokens.redeem(token) is None
    assert tokens.redeem("guess") is None


def test_tokens_differ_and_are_safe_in_a_url() -> None:
    tokens: Tokens[int] = Tokens()
    issued = {tokens.issue(n) for n in range(100)}
    assert len(issued) == 100
    assert all(len(token) >= 32 and token.replace("-", "").replace("_", "").isalnum() for token in issued)


def test_a_token_lives_for_a_minute() -> None:
    clock = Clock()
    tokens: Tokens[str] = Tokens(clock)
    early, late = tokens.issue("early"), None
    clock.now += 1
    late = tokens.issue("late")
    clock.now += LIFETIME_SECONDS - 1
    assert tokens.redeem(early) is None
    assert tokens.redeem(late) == "late"


def test_waiting_tokens_are_bounded() -> None:
    clock = Clock()
    tokens: Tokens[int] = Tokens(clock)
    for n in range(MAX_WAITING):
        tokens.issue(n)
    with pytest.raises(CrispError) as caught:
        tokens.issue(-1)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    clock.now += LIFETIME_SECONDS
    tokens.issue(-1)
