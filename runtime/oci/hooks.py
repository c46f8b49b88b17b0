"""OCI hooks directories in the formats of containers' oci-hooks(5), as CRI-O and Podman read them.

    DIR/NAME.json   {"version": "1.0.0", "hook": {path, args, env, timeout}, "when": {...}, "stages": [...]}
                    {"hook": PATH, "arguments": [...], "stages": [...],      version 0.1.0, which names no version and runs
                     "cmds": [...], "annotations": [...], "hasbindmounts": true}       where one of its conditions holds

Of files with the same name the one in the later directory counts; hooks run in the order of their files' names. A file
that is broken fails the containers that are made, for a hook may be what keeps a node's rules; the error says that the node
is at fault, and not the request.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from proto.errors import invalid
from runtime.oci.json_fields import Fields, of_this_node, read_document

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

VERSION: Final = "1.0.0"
OLD_VERSION: Final = "0.1.0"

MAX_SHOWN: Final = 100  # characters of a pattern, in a message

STAGES: Final = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
"""OCI runtime spec, config.md "POSIX-platform Hooks"."""


@dataclass(frozen=True, slots=True)
class When:
    """Conditions; all that are given must hold, and one must be given. In version 0.1.0 one that holds is enough."""

    always: bool | None
    annotations: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]
    commands: tuple[re.Pattern[str], ...]
    has_bind_mounts: bool | None
    values: tuple[re.Pattern[str], ...] = ()
    """Version 0.1.0: of annotations with any key."""
    any_is_enough: bool = False

    def match(self, annotations: Mapping[str, str], command: str, *, bind_mounts: bool) -> bool:
        """Whether a container with these annotations, first argument and kind of mounts gets the hook."""
        if self.any_is_enough:
            return (
                (self.has_bind_mounts is True and bind_mounts)
                or any(pattern.search(command) for pattern in self.commands)
                or any(pattern.search(value) for pattern in self.values for value in annotations.values())
            )
        if self.always is False or self.has_bind_mounts not in (None, bind_mounts):
            return False
        for key, value in self.annotations:
            if not any(key.search(k) and value.search(v) for k, v in annotations.items()):
                return False
        if self.commands and not any(pattern.search(command) for pattern in self.commands):
            return False
        return bool(self.always or self.annotations or self.commands or self.has_bind_mounts is not None)


@dataclass(frozen=True, slots=True)
class HookFile:
    """One file of a hooks directory."""

    name: str
    hook: dict[str, Any]
    """As in the OCI configuration."""
    when: When
    stages: tuple[str, ...]


def parse_hook(fields: Fields) -> dict[str, Any]:
    """A hook as the OCI configuration has it; also CDI's, whose `hookName` has been read before."""
    path, timeout = fields.required("path"), fields.number("timeout")
    if not path.startswith("/"):
        raise invalid(f"{fields.place}: path {path!r} is not absolute")
    hook: dict[str, Any] = {"path": path}
    if args := fields.texts("args"):
        hook["args"] = list(args)
    if env := fields.texts("env"):
        hook["env"] = list(env)
    if timeout is not None:
        if timeout <= 0:
            raise invalid(f"{fields.place}: timeout must be positive")
        hook["timeout"] = timeout
    fields.finish()
    return hook


def parse(document: Any, place: str) -> HookFile:
    """One document. INVALID_ARGUMENT says what is wrong with it and where."""
    fields = Fields(document, place)
    version = fields.text("version") or OLD_VERSION
    if version == OLD_VERSION:
        return _parse_old(fields)
    if version != VERSION:
        raise invalid(f"{place}: version {version!r} is neither {VERSION} nor {OLD_VERSION}")
    hook, when = fields.inner("hook"), fields.inner("when")
    if hook is None or when is None:
        raise invalid(f"{place}: hook and when must be there")
    stages = _stages(fields)
    fields.finish()
    return HookFile(os.path.basename(place), parse_hook(hook), _when(when), stages)


def _stages(fields: Fields, key: str = "stages") -> tuple[str, ...]:
    stages = fields.texts(key)
    if not stages or not set(stages) <= set(STAGES):
        raise invalid(f"{fields.place}: {key} must be some of {', '.join(STAGES)}")
    return stages


def _parse_old(fields: Fields) -> HookFile:
    """Version 0.1.0: each condition has a name in the singular too, and `hook` is a path."""
    path = fields.required("hook")
    if not path.startswith("/"):
        raise invalid(f"{fields.place}: path {path!r} is not absolute")
    arguments = _both(fields, "arguments", "argument")
    hook: dict[str, Any] = {"path": path, "args": [path, *arguments]} if arguments else {"path": path}
    stages = _stages(fields, "stage" if fields.has("stage") else "stages")
    binds = [flag for key in ("hasbindmounts", "hasbindmount") if (flag := fields.flag(key)) is not None]
    when = When(
        always=None,
        annotations=(),
        commands=_patterns(fields, _both(fields, "cmds", "cmd")),
        has_bind_mounts=any(binds) if binds else None,
        values=_patterns(fields, _both(fields, "annotations", "annotation")),
        any_is_enough=True,
    )
    fields.finish()
    return HookFile(os.path.basename(fields.place), hook, when, stages)


def _both(fields: Fields, *keys: str) -> tuple[str, ...]:
    return tuple(text for key in keys for text in fields.texts(key))


def _patterns(fields: Fields, texts: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(_pattern(fields, text) for text in texts)


def _pattern(fields: Fields, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise invalid(f"{fields.place}: {text[:MAX_SHOWN]!r} is no regular expression: {error}") from None


def _when(fields: Fields) -> When:
    found = When(
        always=fields.flag("always"),
        annotations=tuple((_pattern(fields, k), _pattern(fields, v)) for k, v in fields.table("annotations").items()),
        commands=_patterns(fields, fields.texts("commands")),
        has_bind_mounts=fields.flag("hasBindMounts"),
    )
    fields.finish()
    return found


def load(directories: Sequence[Path]) -> list[HookFile]:
    """All files of the directories, in the order in which their hooks run. Blocks; a directory may be missing.

    FAILED_PRECONDITION for a file that cannot be used: whoever asks for a container has not written it.
    """
    paths: dict[str, Path] = {}
    for directory in directories:
        try:
            names = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        paths |= {name: directory / name for name in names if name.endswith(".json")}
    with of_this_node("OCI hooks"):
        return [parse(read_document(path), str(path)) for _, path in sorted(paths.items())]


def apply(spec: dict[str, Any], files: Sequence[HookFile], annotations: Mapping[str, str], *, bind_mounts: bool) -> None:
    """Add the hooks that match the container."""
    command = spec["process"]["args"][0]
    for file in files:
        if file.when.match(annotations, command, bind_mounts=bind_mounts):
            for stage in file.stages:
                spec.setdefault("hooks", {}).setdefault(stage, []).append(file.hook)
