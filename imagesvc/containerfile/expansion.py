r"""Variables, quotes and escapes in an instruction's values, as docker's reference has them.

    $NAME  ${NAME}              the value, empty if there is none
    ${NAME-WORD}  ${NAME:-WORD}     WORD if it is unset (with the colon: or empty)
    ${NAME+WORD}  ${NAME:+WORD}     WORD if it is set (and not empty)
    ${NAME?WORD}  ${NAME:?WORD}     an error, with the text WORD, if it is unset (or empty)
    ${NAME#PATTERN}  ${NAME##PATTERN}     without the shortest, longest beginning that fits; % and %%: the end
    ${NAME/PATTERN/WORD}  ${NAME//PATTERN/WORD}     with the first, or each, place that fits replaced

WORD may have variables in it. In 'single quotes' nothing has a meaning, in "double quotes" variables have. A backslash (or
what `# escape=` says) takes the next character's meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from imagesvc.containerfile import globs
from imagesvc.containerfile.instructions import (
    Add,
    Arg,
    Copy,
    Env,
    Expose,
    From,
    HereDocument,
    Instruction,
    Label,
    Run,
    RunMount,
    StopSignal,
    User,
    Volume,
    Workdir,
)
from imagesvc.containerfile.ports import parse_port

MAX_VALUE: Final = 1 << 20
"""Characters of an expanded value: `ENV A=$A$A` doubles it."""
_MAX_ALL: Final = 4 * MAX_VALUE
"""Characters of all values of an instruction."""
_TOO_LONG: Final = f"its value grows to more than {MAX_VALUE} characters"
_MAX_DEPTH: Final = 50
_MAX_PORTS: Final = 3 * 65535
_SPECIAL: Final = "@*#?-$!"
"""Names of a shell's own variables, none of which is set here."""

T = TypeVar("T", bound=Instruction)


class ExpansionError(ValueError):
    """What cannot be expanded, and why."""


def expand(instruction: T, variables: Mapping[str, str]) -> T:
    """The instruction with variables put in and quotes taken away; ContainerfileError where that cannot be.

    RUN's command, CMD, ENTRYPOINT, SHELL, HEALTHCHECK, ONBUILD and MAINTAINER are as they were: a shell sees to theirs.
    """
    words = _Words(instruction, variables)
    changes = _changes(instruction, words)
    return dataclasses.replace(instruction, **changes) if changes else instruction


class _Words:
    """Expands the values of one instruction."""

    def __init__(self, instruction: Instruction, variables: Mapping[str, str]) -> None:
        self._instruction = instruction
        self._variables = variables
        self._left = _MAX_ALL

    def one(self, word: str) -> str:
        return self._done(word, quotes=True)

    def text(self, text: str) -> str:
        """A here-document, in which quotes are characters like others."""
        return self._done(text, quotes=False)

    def all(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.one(word) for word in words)

    def _done(self, word: str, *, quotes: bool) -> str:
        try:
            value = expand_word(word, self._variables, self._instruction.escape, quotes=quotes)
        except ExpansionError as error:
            raise self._instruction.error(str(error)) from None
        self._left -= len(value)
        if self._left < 0:
            raise self._instruction.error(f"its values grow to more than {_MAX_ALL} characters")
        return value


def _changes(step: Instruction, words: _Words) -> dict[str, Any]:
    match step:
        case Copy():
            return _copy_changes(step, words)
        case Env() | Label():
            return {"pairs": tuple((words.one(key), words.one(value)) for key, value in step.pairs)}
        case Arg():
            return {
                "pairs": tuple((words.one(key), None if value is None else words.one(value)) for key, value in step.pairs)
            }
        case From():
            return {"image": _not_empty(step, words.one(step.image)), "platform": words.one(step.platform)}
        case Run() if step.mounts:
            return {"mounts": tuple(_mount(step, mount, words) for mount in step.mounts)}
        case Workdir():
            return {"path": _not_empty(step, words.one(step.path))}
        case User():
            return {"user": _not_empty(step, words.one(step.user))}
        case StopSignal():
            return {"signal": _not_empty(step, words.one(step.signal))}
        case Volume():
            return {"paths": tuple(_not_empty(step, path) for path in words.all(step.paths))}
        case Expose():
            return {"ports": _ports(step, [text for port in step.ports for text in words.one(port).split()])}
    return {}


def _ports(step: Expose, texts: list[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    told = 0
    for text in dict.fromkeys(texts):
        ports = parse_port(step, text)
        told += len(ports)
        if told > _MAX_PORTS:
            raise step.error(f"it has more than the {_MAX_PORTS} ports that there are: name each once")
        found.update(dict.fromkeys(ports))
    return tuple(found)


def _copy_changes(step: Copy, words: _Words) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "sources": words.all(step.sources),
        "target": _not_empty(step, words.one(step.target)),
        "heredocs": tuple(_document(document, words) for document in step.heredocs),
        "chown": words.one(step.chown),
        "chmod": words.one(step.chmod),
        "excludes": words.all(step.excludes),
    }
    if isinstance(step, Add):
        changes["checksum"] = words.one(step.checksum)
    return changes


def _document(document: HereDocument, words: _Words) -> HereDocument:
    return dataclasses.replace(document, content=words.text(document.content)) if document.expand else document


def _mount(step: Run, mount: RunMount, words: _Words) -> RunMount:
    values: dict[str, Any] = {name: words.one(getattr(mount, name)) for name in ("source", "target", "id", "env")}
    if mount.target and not values["target"]:
        raise step.error(f"--mount: the target {mount.target} is empty: its variables are not set")
    return dataclasses.replace(mount, **values)


def _not_empty(step: Instruction, value: str) -> str:
    if not value:
        raise step.error("its value is empty once variables are put in: give one, or a default by ${NAME:-default}")
    return value


def expand_word(word: str, variables: Mapping[str, str], escape: str = "\\", *, quotes: bool = True) -> str:
    """A word with variables put in and, with `quotes`, its quotes taken away. Raises ExpansionError."""
    return _Expander(word, variables, escape, quotes).run()


class _Expander:
    """Goes through a word once, from left to right."""

    def __init__(self, word: str, variables: Mapping[str, str], escape: str, quotes: bool) -> None:
        self._word = word
        self._at = 0
        self._variables = variables
        self._escape = escape
        self._quotes = quotes
        self._depth = 0

    def run(self) -> str:
        return self._until("", raw=False)

    def _peek(self) -> str:
        return self._word[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        self._at += 1
        return character

    def _until(self, stop: str, *, raw: bool) -> str:
        """Up to the character `stop`, which is taken too, or the end. `raw` keeps escapes, for what becomes a pattern."""
        out = _Value()
        while character := self._next():
            if character == stop:
                break
            if character == "$":
                out.append(self._dollar())
            elif character == "'" and self._quotes:
                out.append(self._single())
            elif character == '"' and self._quotes:
                out.append(self._double(raw))
            elif character == self._escape and (self._quotes or self._depth or self._peek() in ("$", self._escape)):
                # In a here-document only what would have a meaning is escaped.
                out.append((character if raw else "") + self._next())
            else:
                out.append(character)
        else:
            if stop:
                raise ExpansionError(f"{_shown(self._word)}: a ${{ without its }}")
        return out.text()

    def _single(self) -> str:
        end = self._word.find("'", self._at)
        if end < 0:
            raise ExpansionError(f"{_shown(self._word)}: a ' without its other one")
        text, self._at = self._word[self._at : end], end + 1
        return text

    def _double(self, raw: bool) -> str:
        out = _Value()
        while character := self._next():
            if character == '"':
                return out.text()
            if character == "$":
                out.append(self._dollar())
            elif character == self._escape and self._peek() in ('"', "$", self._escape):
                out.append((character if raw else "") + self._next())
            else:
                out.append(character)
        raise ExpansionError(f'{_shown(self._word)}: a " without its other one')

    def _dollar(self) -> str:
        if self._peek() != "{":
            name = self._name()
            return self._variables.get(name, "") if name else "$"
        self._at += 1
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ExpansionError(f"{_shown(self._word)}: more than {_MAX_DEPTH} ${{ in one another")
        name = self._name()
        if not name:
            raise ExpansionError(f"{_shown(self._word)}: after ${{ there is to be the name of a variable")
        try:
            value = self._modified(name)
        except globs.GlobError as error:
            raise ExpansionError(f"{_shown(self._word)}: {error}") from None
        self._depth -= 1
        return value

    def _name(self) -> str:
        start = self._at
        first = self._peek()
        if first and first in _SPECIAL:
            self._at += 1
        elif first.isdigit():
            while self._peek().isdigit():
                self._at += 1
        else:
            while self._peek().isalnum() or self._peek() == "_":
                self._at += 1
        return self._word[start : self._at]

    def _modified(self, name: str) -> str:
        value = self._variables.get(name)
        operator = self._next()
        if operator == "}":
            return value or ""
        if operator == "/":
            return self._replaced(value or "")
        colon = operator == ":"
        if colon:
            operator = self._next()
        if operator in ("#", "%") and not colon:
            return self._trimmed(value or "", operator)
        if not operator:
            raise ExpansionError(f"{_shown(self._word)}: a ${{ without its }}")
        if operator not in ("-", "+", "?"):
            raise ExpansionError(
                f"{_shown(self._word)}: {':' if colon else ''}{operator} is no modifier of a variable: "
                "there are - + ? with and without a colon, # ## % %% / and //"
            )
        word = self._until("}", raw=False)
        there = value is not None and not (colon and not value)
        if operator == "+":
            return word if there else ""
        if there:
            return value or ""
        if operator == "?":
            state = "is not set" if value is None else "is empty"
            raise ExpansionError(f"the variable {name} {state}" + (f": {word}" if word else ""))
        return word

    def _trimmed(self, value: str, operator: str) -> str:
        longest = self._peek() == operator
        self._at += longest
        pattern = self._pattern("}")
        if operator == "#":
            return globs.without_prefix(value, pattern, longest=longest)
        return globs.without_suffix(value, pattern, longest=longest)

    def _replaced(self, value: str) -> str:
        every = self._peek() == "/"
        self._at += every
        pattern = self._pattern("/")
        word = self._until("}", raw=False)
        return _bounded(globs.replaced(value, pattern, word, every=every, limit=MAX_VALUE))

    def _pattern(self, stop: str) -> globs.Pattern:
        return globs.parse(self._until(stop, raw=True), self._escape)


class _Value:
    """A value as it grows: of a long variable that is named often, no more is made than may be."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0

    def append(self, piece: str) -> None:
        self._pieces.append(piece)
        self._length += len(piece)
        if self._length > MAX_VALUE:
            raise ExpansionError(_TOO_LONG)

    def text(self) -> str:
        return "".join(self._pieces)


def _bounded(value: str) -> str:
    if len(value) > MAX_VALUE:
        raise ExpansionError(_TOO_LONG)
    return value


def _shown(word: str) -> str:
    return word if len(word) <= 100 else word[:97] + "..."
