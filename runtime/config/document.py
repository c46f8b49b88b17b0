"""crisp.toml with every key, its default and what it means, made from the configuration's own classes.

`crisp config` prints it; `manifests/crisp.toml` is a copy that a test keeps true.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Any, Final

from runtime.config.settings import Config, HandlerConfig

WIDTH: Final = 110

HEAD: Final = """\
# crisp.toml: every key with its default. It is read from /etc/crisp/crisp.toml, or from where `crisp serve --config` says.
# No key is needed. One that is unknown or of the wrong type is an error that names it and its line.
"""


def document() -> str:
    """The whole file."""
    lines = [HEAD, *_table(Config(), "")]
    lines += ["", "# An OCI runtime beside crun and runc, which are found in PATH; RuntimeClass objects name it.", "#"]
    lines += [f"# {line}".rstrip() for line in ("[runtimes.NAME]", *_keys(HandlerConfig()))]
    return "\n".join(lines) + "\n"


def _table(section: Any, name: str) -> Iterator[str]:
    if name:
        yield ""
        yield from _comment(type(section).__doc__)
        yield f"[{name}]"
    yield from _keys(section)
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _table(value, f"{name}.{field.name}" if name else field.name)


def _keys(section: Any) -> Iterator[str]:
    explained = _docstrings(type(section))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if not dataclasses.is_dataclass(value) and not isinstance(value, dict):
            yield from _comment(explained.get(field.name))
            yield f"{field.name} = {_toml(value)}"


def _comment(text: str | None) -> list[str]:
    return textwrap.wrap(" ".join((text or "").split()), WIDTH, initial_indent="# ", subsequent_indent="# ")


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value if isinstance(value, bool | int | float) else str(value))


def _docstrings(cls: type) -> dict[str, str]:
    """The string below each field, which Python itself forgets."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for node, following in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[node.target.id] = str(following.value.value)
    return found
