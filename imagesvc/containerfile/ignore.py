"""`.containerignore` and `.dockerignore`: what of the context is not there. Docker's rules.

    # comment     from the line's beginning
    *.log         patterns as in patterns.py, from the context's root; a leading slash means nothing
    docs          a directory: all that is in it too
    !docs/a.md    is there after all

The last line that fits a path, or a directory in which it lies, decides.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from imagesvc.containerfile.errors import ContainerfileError, Place
from imagesvc.containerfile.patterns import PathPattern, PatternError


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: PathPattern
    exception: bool


class IgnoreRules:
    """The rules of a file, or the --exclude options of an instruction."""

    def __init__(self, rules: tuple[_Rule, ...] = ()) -> None:
        self._rules = rules
        self._exceptions = tuple(rule.pattern for rule in rules if rule.exception)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def ignores(self, path: str) -> bool:
        """Whether a path is not there; it is relative to the root and clean."""
        seen: tuple[bool, ...] = ()
        ignored, names = False, path.split("/")
        for i in range(len(names)):
            ignored, seen = self.step("/".join(names[: i + 1]), seen)
        return ignored

    def step(self, path: str, parent: tuple[bool, ...] = ()) -> tuple[bool, tuple[bool, ...]]:
        """For who walks: whether a path is ignored, and what to hand in for the paths in it. `parent` is its directory's."""
        ignored = False
        seen = []
        for i, rule in enumerate(self._rules):
            match = bool(parent and parent[i]) or rule.pattern.matches(path)
            seen.append(match)
            if match:
                ignored = not rule.exception
        return ignored, tuple(seen)

    def exempts_below(self, directory: str) -> bool:
        """Whether something below an ignored directory may be there all the same."""
        return any(pattern.may_match_below(directory) for pattern in self._exceptions)


def parse(text: str, name: str) -> IgnoreRules:
    """The rules of an ignore file; ContainerfileError names the line."""
    lines = text.removeprefix("\ufeff").split("\n")
    return IgnoreRules(
        tuple(
            rule
            for number, line in enumerate(lines, 1)
            if not line.startswith("#") and (rule := _rule(line, Place(name, number))) is not None
        )
    )


def excludes(patterns: tuple[str, ...], at: Place, instruction: str) -> IgnoreRules:
    """The rules of --exclude."""
    return IgnoreRules(tuple(rule for line in patterns if (rule := _rule(line, at, instruction)) is not None))


def _rule(line: str, at: Place, instruction: str = "") -> _Rule | None:
    text = line.strip()
    if not text:
        return None
    exception = text.startswith("!")
    if exception:
        text = text[1:].strip()
        if not text:
            raise ContainerfileError(at, instruction, "after ! there is to be a pattern")
    if posixpath.normpath(text) in (".", "/"):
        return None  # docker does not let it exclude everything; `*` does
    if posixpath.normpath(text).startswith("../"):
        return None  # outside, where nothing is
    try:
        return _Rule(PathPattern(text), exception)
    except PatternError as error:
        raise ContainerfileError(at, instruction, str(error)) from None
