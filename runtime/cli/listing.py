"""Lists as docker prints them: a table, names only, one JSON object per line, or a template of one's own.

--format json                   an object per line
--format '{{.ID}}\t{{.Names}}'  the fields of that object; `{{json .}}` and `{{json .Labels}}` as JSON
--format 'table {{.ID}}'        the same with a heading
--filter state=running          KEY=VALUE; of one key any value fits, of several keys each must
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from runtime.cli.output import clean, fail, table

if TYPE_CHECKING:
    Row = Mapping[str, Any]
    Filters = Mapping[str, Callable[[Row, str], bool]]

_ACTION = re.compile(r"\{\{-?\s*(json\s+)?(\.[\w.\-]*)\s*-?\}\}")
_ANY_ACTION = re.compile(r"\{\{.*?\}\}", re.DOTALL)


def options(*, filters: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that every list has."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        added = [
            click.option("--quiet", "-q", is_flag=True, help="Ids only."),
            click.option("--format", "form", default="table", metavar="json|table|TEMPLATE", help="How each line looks."),
            click.option("--no-trunc", is_flag=True, help="Ids and names in full."),
        ]
        if filters:
            added.append(click.option("--filter", "-f", "wanted", multiple=True, metavar="KEY=VALUE", help="Repeatable."))
        return functools.reduce(lambda done, option: option(done), reversed(added), command)

    return decorate


def chosen(rows: Sequence[Row], wanted: Sequence[str], filters: Filters) -> list[Row]:
    """The rows that all filters let pass. Ends the command for a filter that there is not."""
    asked: dict[str, list[str]] = {}
    for text in wanted:
        key, equals, value = text.partition("=")
        if not equals or key not in filters:
            fail(f"--filter {text}: not of the form KEY=VALUE with one of the keys {', '.join(sorted(filters))}", 2)
        asked.setdefault(key, []).append(value)
    return [row for row in rows if all(any(filters[key](row, value) for value in values) for key, values in asked.items())]


def show(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]], form: str, *, quiet: bool) -> None:
    """Print the rows; `columns` are those of the table."""
    if quiet:
        for row in rows:
            click.echo(row["ID"])
    elif form == "json":
        for row in rows:
            click.echo(json.dumps(row))
    elif form == "table":
        table(tuple(columns), [tuple(cell(row) for cell in columns.values()) for row in rows])
    else:
        headed = form.startswith("table ")
        template = parse(form.removeprefix("table "))
        if headed:
            click.echo(template.heading())
        for row in rows:
            click.echo(template.fill(row))


class Template:
    """The part of Go's text/template that people write on a command line: fields, and fields as JSON."""

    def __init__(self, parts: list[str | tuple[bool, tuple[str, ...]]]) -> None:
        self._parts = parts

    def fill(self, value: Any) -> str:
        """The text for one value. Ends the command if it has not such a field."""
        return "".join(part if isinstance(part, str) else _text(value, *part) for part in self._parts)

    def heading(self) -> str:
        """The names of the fields, as a table's first line."""
        return "".join(part if isinstance(part, str) else ".".join(part[1]).upper() for part in self._parts)


def parse(text: str) -> Template:
    r"""A template; \t and \n are a tab and the end of a line. Ends the command if it asks for more than fields."""
    text = text.replace("\\t", "\t").replace("\\n", "\n")
    parts: list[str | tuple[bool, tuple[str, ...]]] = []
    position = 0
    for match in _ANY_ACTION.finditer(text):
        field = _ACTION.fullmatch(match[0])
        if field is None:
            fail(
                f"--format: {match[0]} is not understood: {{{{.Field}}}}, {{{{.Field.Inner}}}} and {{{{json .Field}}}} are",
                2,
            )
        parts.append(text[position : match.start()])
        parts.append((bool(field[1]), tuple(name for name in field[2].split(".") if name)))
        position = match.end()
    return Template([*parts, text[position:]])


def _text(value: Any, as_json: bool, names: tuple[str, ...]) -> str:
    for index, name in enumerate(names):
        if not isinstance(value, Mapping) or name not in value:
            known = f": known are {', '.join(sorted(value))}" if isinstance(value, Mapping) else ""
            fail(f"--format: there is no .{'.'.join(names[: index + 1])}{known}", 2)
        value = value[name]
    if as_json or isinstance(value, (Mapping, list)):
        return json.dumps(value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return clean(text) if os.isatty(1) else text
