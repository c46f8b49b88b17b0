r"""A shell's patterns in values of variables: `*` any characters, `?` one, `\` takes away a meaning. No brackets.

A value is gone through once with the set of places in the pattern that can have been reached, as bits of a number. What
takes too many steps all the same, such as each place of a long value where something might begin, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

_ANY: Final = ""
_STAR: Final = None
Pattern = Sequence[str | None]
"""Characters; "" for any one, None for any number."""


MAX_STEPS: Final = 8_000_000
"""Comparisons of a character with a part of a pattern, for one `${…}`."""


class GlobError(ValueError):
    """What is no pattern, and why; or that it takes too long."""


class _Work:
    """Counts the steps of one operation."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def take(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise GlobError(f"a pattern that takes more than {MAX_STEPS} steps: the value or the pattern is too long for it")


def parse(text: str, escape: str = "\\") -> Pattern:
    """Reads a pattern."""
    found: list[str | None] = []
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "*":
            if found[-1:] != [_STAR]:
                found.append(_STAR)
        elif character == "?":
            found.append(_ANY)
        elif character in (escape, "\\"):
            if at == len(text):
                raise GlobError("a pattern ends with what is to stand before a character")
            found.append(text[at])
            at += 1
        else:
            found.append(character)
    return found


def _ends(value: str, start: int, pattern: Pattern, work: _Work) -> Iterator[int]:
    """Where what fits, from `start` on, may end: shortest first."""
    goal = 1 << len(pattern)
    reached = _skip(1, pattern)
    at = start
    while reached:
        if reached & goal:
            yield at
        if at == len(value):
            return
        work.take(len(pattern) + 4)
        after = 0
        for place, wanted in enumerate(pattern):
            if reached >> place & 1:
                if wanted is _STAR:
                    after |= 1 << place
                elif wanted in (_ANY, value[at]):
                    after |= 1 << place + 1
        reached = _skip(after, pattern)
        at += 1


def _skip(reached: int, pattern: Pattern) -> int:
    for place, wanted in enumerate(pattern):
        if wanted is _STAR and reached >> place & 1:
            reached |= 1 << place + 1
    return reached


def _end(value: str, start: int, pattern: Pattern, work: _Work, *, longest: bool) -> int:
    """Where the shortest or longest that fits ends; -1 where nothing fits."""
    if longest and pattern and pattern[-1] is _STAR:
        return len(value) if _end(value, start, pattern[:-1], work, longest=False) >= 0 else -1
    end = -1
    for end in _ends(value, start, pattern, work):  # noqa: B007  the last one is wanted
        if not longest:
            break
    return end


def without_prefix(value: str, pattern: Pattern, *, longest: bool) -> str:
    """The value without the beginning that fits; the entire value if none does. Raises GlobError, as all of these."""
    return value[max(_end(value, 0, pattern, _Work(), longest=longest), 0) :]


def without_suffix(value: str, pattern: Pattern, *, longest: bool) -> str:
    """The value without the end that fits."""
    return without_prefix(value[::-1], pattern[::-1], longest=longest)[::-1]


def replaced(value: str, pattern: Pattern, word: str, *, every: bool, limit: int) -> str:
    """The value with the first place that fits, or every one, replaced; the longest fits. No more than `limit` is made."""
    work = _Work()
    if not value:
        return word if pattern and _end(value, 0, pattern, work, longest=False) == 0 else ""
    out, at, length = [], 0, 0
    while at < len(value) and length <= limit:
        end = _end(value, at, pattern, work, longest=True)
        piece = value[at] if end <= at else word
        out.append(piece)
        length += len(piece)
        at = max(end, at + 1)
        if end >= 0 and piece is word and not every:
            break
    return "".join(out) + value[at:]
