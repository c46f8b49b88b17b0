"""The part of Go's text/template in which templates of network configurations are written for containerd.

    {{.PodCIDR}}                                     a value
    {{range .PodCIDRRanges}} … {{.}} … {{end}}       once for each
    {{range $i, $cidr := .PodCIDRRanges}} … {{$cidr}} … {{end}}
    {{if $i}}, {{else}} … {{end}}                    empty text, 0 and empty lists are false
    {{- … -}}                                        trims white space around
    {{/* … */}}

Anything else is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from proto.errors import invalid

Value = str | int | Sequence[str]

_ACTION = re.compile(r"\{\{(-(?=\s))?\s*(.*?)\s*((?<=\s)-)?\}\}", re.DOTALL)
_RANGE = re.compile(r"range\s+(?:(?:\$(\w+)\s*,\s*)?\$(\w+)\s*:=\s*)?(\S+)")


@dataclass(slots=True)
class _Block:
    """A sequence of texts and actions; `action` opens it."""

    action: str = ""
    body: list[str | _Block | _Value] = field(default_factory=list)
    otherwise: list[str | _Block | _Value] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Value:
    name: str


def render(template: str, values: Mapping[str, Value]) -> str:
    """Fill a template in; `values` by name without the dot. Raises INVALID_ARGUMENT."""
    names: dict[str, Value] = {f".{name}": value for name, value in values.items()}
    return "".join(_render(_parse(template).body, names))


def _parse(template: str) -> _Block:
    stack = [_Block()]
    lists = [stack[0].body]
    position, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip() if trim else text
        lists[-1].append(text.rstrip() if match[1] else text)
        position, trim = match.end(), bool(match[3])
        _take(match[2], stack, lists)
    if len(stack) > 1:
        raise invalid(f"template: {{{{{stack[-1].action}}}}} has no {{{{end}}}}")
    rest = template[position:]
    lists[-1].append(rest.lstrip() if trim else rest)
    return stack[0]


def _take(action: str, stack: list[_Block], lists: list[list[str | _Block | _Value]]) -> None:
    word = action.split(maxsplit=1)[0] if action else ""
    if action.startswith("/*") and action.endswith("*/"):
        return
    if word in ("range", "if"):
        block = _Block(action)
        lists[-1].append(block)
        stack.append(block)
        lists.append(block.body)
    elif action == "else" and len(stack) > 1:
        lists[-1] = stack[-1].otherwise
    elif action == "end" and len(stack) > 1:
        stack.pop()
        lists.pop()
    elif re.fullmatch(r"\.\w*|\$\w+", action):
        lists[-1].append(_Value(action))
    else:
        raise invalid(f"template: {{{{{action}}}}} is not understood: values, range, if, else and end are")


def _render(parts: list[str | _Block | _Value], names: Mapping[str, Value]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, _Value):
            yield _text(part.name, names)
        elif part.action.startswith("if"):
            chosen = part.body if _lookup(part.action[2:].strip(), names) else part.otherwise
            yield from _render(chosen, names)
        else:
            yield from _range(part, names)


def _range(block: _Block, names: Mapping[str, Value]) -> Iterator[str]:
    match = _RANGE.fullmatch(block.action)
    if match is None:
        raise invalid(f"template: {{{{{block.action}}}}} is not understood")
    index, item, name = match.groups()
    items = _lookup(name, names)
    if isinstance(items, str | int):
        raise invalid(f"template: {name} is not a list")
    for number, value in enumerate(items):
        inner = {**names, ".": value}
        if index:
            inner[f"${index}"] = number
        if item:
            inner[f"${item}"] = value
        yield from _render(block.body, inner)
    if not items:
        yield from _render(block.otherwise, names)


def _lookup(name: str, names: Mapping[str, Value]) -> Value:
    if name not in names:
        raise invalid(f"template: {name} is unknown; known are {', '.join(sorted(names))}")
    return names[name]


def _text(name: str, names: Mapping[str, Value]) -> str:
    value = _lookup(name, names)
    if not isinstance(value, str | int):
        raise invalid(f"template: {name} is a list: {{{{range}}}} it")
    return str(value)
