r"""Patterns of paths: Go's filepath.Match, and `**` for any number of directories.

    *        any characters but /              ?      one of them
    [a-z]    one of these, [^a-z] one of the others     \c     the character c
    **       as a component: any number of directories, none too; at the end: everything below

Each component is matched by itself, and each piece between two stars where it first fits (an atomic group): the time grows
with the lengths of pattern and path, whatever they are.
"""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass


class PatternError(ValueError):
    """What is no pattern, and why."""


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a pattern between slashes: a name as it stands, an expression, or any number of directories (neither)."""

    name: str | None
    expression: re.Pattern[str] | None

    @property
    def deep(self) -> bool:
        """Whether it is `**`."""
        return self.name is None and self.expression is None

    def matches(self, name: str) -> bool:
        """Whether it stands for this name; `**` is for who walks."""
        return name == self.name if self.expression is None else self.expression.match(name) is not None


class PathPattern:
    """A pattern for paths that are relative to a directory, without `.`, `..` and double slashes."""

    def __init__(self, text: str) -> None:
        """Raises PatternError. Leading slashes, `.` and `x/..` are taken out."""
        self.text = text
        clean = posixpath.normpath("/" + text).lstrip("/")
        parts = clean.split("/") if clean else []
        # docker takes `**` at the beginning for "ends with" where there is no other wildcard.
        suffix = not any(character in clean.lstrip("*") for character in "*?[\\")
        found = tuple(component for i, part in enumerate(parts) for component in _components(part, suffix=suffix and i == 0))
        # `**/**` is `**`: so there is one way alone to use them up.
        self.components = tuple(
            component
            for i, component in enumerate(found)
            if not (component.deep and i + 1 < len(found) and found[i + 1].deep)
        )
        leading = bool(self.components) and self.components[0].deep
        end = self.components[1:] if leading else self.components
        # Most patterns are names, or `**/` and names: then it is known which component is to fit which.
        self._end = end if end and not any(component.deep for component in end) else ()
        self._leading = leading

    @property
    def wild(self) -> bool:
        """Whether it may stand for more than one path."""
        return any(component.name is None for component in self.components)

    def matches(self, path: str) -> bool:
        """Whether the whole path fits."""
        names = path.split("/")
        end = self._end
        if not end:
            return len(self.components) in self._reached(names)
        if len(names) != len(end):
            if not self._leading or len(names) < len(end):
                return False
            names = names[-len(end) :]
        return all(component.matches(name) for component, name in zip(end, names, strict=True))

    def may_match_below(self, directory: str) -> bool:
        """Whether a path below this directory could fit."""
        return any(place < len(self.components) for place in self._reached(directory.split("/")))

    def _reached(self, names: Sequence[str]) -> set[int]:
        """How many components can have been used up by all these names."""
        places = self._skipped({0})
        for name in names:
            after = set()
            for place in places:
                if place < len(self.components):
                    component = self.components[place]
                    if component.deep:
                        # At the end `**` is everything below, but not the directory itself.
                        after.add(place)
                        if place + 1 == len(self.components):
                            after.add(place + 1)
                    elif component.matches(name):
                        after.add(place + 1)
            places = self._skipped(after)
        return places

    def _skipped(self, places: set[int]) -> set[int]:
        """`**` may also stand for no directory, where something follows."""
        found = set(places)
        for place in sorted(places):
            at = place
            while at + 1 < len(self.components) and self.components[at].deep:
                at += 1
                found.add(at)
        return found


def _components(part: str, *, suffix: bool) -> list[Component]:
    """`**`, and what stands right behind it: with `suffix` `**.c` is every name that ends so, else that name anywhere."""
    deep = Component(None, None)
    if not part.strip("*"):
        return [deep] if len(part) > 1 else [_component("*")]
    if part.startswith("**"):
        return [deep, _component(("*" if suffix else "") + part.lstrip("*"))]
    return [_component(part)]


@functools.lru_cache(4096)
def _component(text: str) -> Component:
    if not any(character in text for character in "*?[\\"):
        return Component(text, None)
    pieces, at = [""], 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "*":
            pieces.append("")
        elif character == "?":
            pieces[-1] += "."
        elif character == "[":
            expression, at = _class(text, at)
            pieces[-1] += expression
        elif character == "\\":
            if at == len(text):
                raise PatternError(f"{text!r} ends with a backslash, which is to stand before a character")
            pieces[-1] += re.escape(text[at])
            at += 1
        else:
            pieces[-1] += re.escape(character)
    first, *rest = pieces
    expression = first
    if rest:
        *middle, last = rest
        expression += "".join(f"(?>.*?{piece})" for piece in middle if piece) + ".*" + last
    return Component(None, re.compile(rf"(?:{expression})\Z", re.DOTALL))


def _class(text: str, at: int) -> tuple[str, int]:
    """What is in brackets, as an expression, and where it is over."""
    unclosed = PatternError(f"{text!r} has a [ without its ], or nothing between them")
    negated = text[at : at + 1] == "^"
    at += negated
    ranges: list[str] = []
    while text[at : at + 1] != "]" or not ranges:
        low, at = _member(text, at, unclosed)
        high = low
        if text[at : at + 1] == "-":
            high, at = _member(text, at + 1, unclosed)
        ranges.append(f"{re.escape(low)}-{re.escape(high)}" if low <= high else "")
    inside = "".join(ranges)
    if not inside:
        return ("." if negated else "(?!)"), at + 1
    return f"[{'^' if negated else ''}{inside}]", at + 1


def _member(text: str, at: int, unclosed: PatternError) -> tuple[str, int]:
    """A character of a class: `-` and `]` only behind a backslash."""
    if text[at : at + 1] == "\\":
        at += 1
    elif text[at : at + 1] in ("-", "]"):
        raise unclosed
    if at >= len(text):
        raise unclosed
    return text[at], at + 1
