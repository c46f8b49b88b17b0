"""OCI hooks directories in the format of containers' oci-hooks(5), version 1.0.0, as CRI-O and Podman read them.

    DIR/NAME.json   {"version": "1.0.0", "hook": {path, args, env, timeout}, "when": {...}, "stages": [...]}

Of files with the same name the one in the later directory counts; hooks run in the order of their files' names. A file
that is broken fails the containers that are made, for a hook may be what keeps a node's rules.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from proto.errors import invalid
from runtime.oci.json_fields import Fields, read_document

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

VERSION: Final = "1.0.0"

STAGES: Final = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
"""OCI runtime spec, config.md "POSIX-platform Hooks"."""


@dataclass(frozen=True, slots=True)
class When:
    """Conditions; all that are given must hold, and one must be given."""

    always: bool | None
    annotations: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]
    commands: tuple[re.Pattern[str], ...]
    has_bind_mounts: bool | None

    def match(self, annotations: Mapping[str, str], command: str, *, bind_mounts: bool) -> bool:
        """Whether a container with these annotations, first argument and kind of mounts gets the hook."""
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
    if (version := fields.required("version")) != VERSION:
        raise invalid(f"{place}: version {version!r} is not {VERSION}")
    hook, when = fields.inner("hook"), fields.inner("when")
    if hook is None or when is None:
        raise invalid(f"{place}: hook and when must be there")
    stages = fields.texts("stages")
    fields.finish()
    if not stages or not set(stages) <= set(STAGES):
        raise invalid(f"{place}: stages must be some of {', '.join(STAGES)}")
    return HookFile(os.path.basename(place), parse_hook(hook), _when(when), stages)


def _when(fields: Fields) -> When:
    try:
        found = When(
            always=fields.flag("always"),
            annotations=tuple((re.compile(k), re.compile(v)) for k, v in fields.table("annotations").items()),
            commands=tuple(re.compile(pattern) for pattern in fields.texts("commands")),
            has_bind_mounts=fields.flag("hasBindMounts"),
        )
    except re.error as error:
        raise invalid(f"{fields.place}: {error.pattern!r} is no regular expression: {error}") from None
    fields.finish()
    return found


def load(directories: Sequence[Path]) -> list[HookFile]:
    """All files of the directories, in the order in which their hooks run. Blocks; a directory may be missing."""
    paths: dict[str, Path] = {}
    for directory in directories:
        try:
            names = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        paths |= {name: directory / name for name in names if name.endswith(".json")}
    return [parse(read_document(path), str(path)) for _, path in sorted(paths.items())]


def apply(spec: dict[str, Any], files: Sequence[HookFile], annotations: Mapping[str, str], *, bind_mounts: bool) -> None:
    """Add the hooks that match the container."""
    command = spec["process"]["args"][0]
    for file in files:
        if file.when.match(annotations, command, bind_mounts=bind_mounts):
            for stage in file.stages:
                spec.setdefault("hooks", {}).setdefault(stage, []).append(file.hook)
