"""--chmod: `755`, or clauses like `u=rwX,go-w` as chmod(1) has them, but that no umask counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

_CLAUSE: Final = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)")
_ACTION: Final = re.compile(r"([-+=])([ugo]|[rwxXst]*)")
_BITS: Final = {"r": 4, "w": 2, "x": 1}
_SHIFT: Final = {"u": 6, "g": 3, "o": 0}
_SPECIAL: Final = {"u": 0o4000, "g": 0o2000, "o": 0o1000}
"""`s` of the owner and the group, `t` of the others."""

Change = Callable[[int, bool], int]
"""From a mode, and whether it is a directory's, to the new mode."""


def parse(text: str) -> Change | None:
    """None if it is neither form."""
    if re.fullmatch("[0-7]{1,5}", text) and int(text, 8) <= 0o7777:
        fixed = int(text, 8)
        return lambda _mode, _directory: fixed
    clauses = [_CLAUSE.fullmatch(part) for part in text.split(",")]
    actions = [(clause[1], operator, what) for clause in clauses if clause for operator, what in _ACTION.findall(clause[2])]
    if not all(clauses):
        return None

    def change(mode: int, directory: bool) -> int:
        for who, operator, what in actions:
            mode = _apply(mode, directory, who.replace("a", "ugo") or "ugo", operator, what)
        return mode

    return change


def _apply(mode: int, directory: bool, who: Iterable[str], operator: str, what: str) -> int:
    executable = directory or bool(mode & 0o111)
    for one in set(who):
        if what in _SHIFT and what:
            bits = (mode >> _SHIFT[what] & 7) << _SHIFT[one]
        else:
            wanted = sum(_BITS[letter] for letter in set(what) if letter in _BITS)
            bits = (wanted | (1 if "X" in what and executable else 0)) << _SHIFT[one]
            bits |= _SPECIAL[one] if ("t" if one == "o" else "s") in what else 0
        if operator == "+":
            mode |= bits
        elif operator == "-":
            mode &= ~bits
        else:
            mode = mode & ~(7 << _SHIFT[one] | _SPECIAL[one]) | bits
    return mode
