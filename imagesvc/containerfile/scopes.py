"""Which variables an instruction sees: ARG's scopes, ENV, and what is there by itself.

before the first FROM    ARG: --build-arg, else its default. Seen by FROM lines, and by an ARG of the same name in a stage
in a stage               ARG: --build-arg, else its default, else the global one. From here to the stage's end, and in stages
                         that are based on it. ENV of the same name hides it, the base image's too
by themselves            BUILDPLATFORM, TARGETPLATFORM and their parts: as if declared before the first FROM
                         HTTP_PROXY and such: given by --build-arg they are in RUN's environment, and nowhere else
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from imagesvc.containerfile.expansion import expand
from imagesvc.containerfile.instructions import Arg, Containerfile, Env, Instruction
from imagesvc.platforms import Platform

PROXIES: Final = frozenset(
    name for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY") for name in (upper, upper.lower())
)
_UNDERSTOOD: Final = frozenset({"SOURCE_DATE_EPOCH"})
T = TypeVar("T", bound=Instruction)


@dataclass(frozen=True)
class Platforms:
    """Where is built, and for what."""

    build: Platform
    target: Platform


class Scope:
    """The variables at one place of a Containerfile; goes through the instructions of a stage by `enter`."""

    def __init__(self, given: Mapping[str, str], globals_: Mapping[str, str]) -> None:
        self._given = given
        self._globals = globals_
        self._arguments: dict[str, str] = {}
        self.environment: dict[str, str] = {}
        """ENV so far: the base's and the stage's."""

    @classmethod
    def of_globals(
        cls, containerfile: Containerfile, given: Mapping[str, str], platforms: Platforms, target_stage: str = ""
    ) -> Scope:
        """What FROM lines see: `expand` these. `given` is --build-arg, `target_stage` what --target says."""
        scope = cls(given, {**_of_platforms(platforms), "TARGETSTAGE": target_stage or "default"})
        scope._arguments = {**scope._globals}
        for arg in containerfile.global_args:
            scope.enter(arg)
        scope._globals = {**scope._arguments}
        return scope

    def for_stage(self, environment: Mapping[str, str] | Sequence[str], parent: Scope | None = None) -> Scope:
        """The scope at a stage's beginning. `environment` is the base image's; `parent` that of the stage it is based on."""
        scope = Scope(self._given, self._globals)
        if parent is not None:
            scope._arguments = {**parent._arguments}
        if isinstance(environment, Mapping):
            scope.environment = dict(environment)
        else:
            scope.environment = {name: value for name, _, value in (entry.partition("=") for entry in environment)}
        return scope

    @property
    def variables(self) -> dict[str, str]:
        """What can be put in."""
        return {**self._arguments, **self.environment}

    @property
    def arguments(self) -> dict[str, str]:
        """Declared ARGs that have a value and that no ENV hides: RUN's environment has these beside ENV."""
        return {name: value for name, value in self._arguments.items() if name not in self.environment}

    @property
    def proxies(self) -> dict[str, str]:
        """Proxies that were given and not declared: RUN's environment has them too, but no cache key and no history."""
        found = {name: value for name, value in self._given.items() if name in PROXIES}
        return {name: value for name, value in found.items() if name not in self.variables}

    def expand(self, instruction: T) -> T:
        """The instruction with variables put in; ContainerfileError."""
        return expand(instruction, ChainMap(self.environment, self._arguments))

    def enter(self, instruction: T) -> T:
        """The same, and ARG and ENV have their effect."""
        expanded = self.expand(instruction)
        if isinstance(expanded, Env):
            for name, value in expanded.pairs:
                if not name or "=" in name:
                    raise expanded.error(f"{name!r} cannot be the name of a variable")
                self.environment[name] = value
        elif isinstance(expanded, Arg):
            for name, default in expanded.pairs:
                chosen = self._given.get(name, self._globals.get(name) if default is None else default)
                if chosen is not None:
                    self._arguments[name] = chosen
        return expanded


def unused(containerfile: Containerfile, given: Mapping[str, str]) -> list[str]:
    """Names of --build-arg that no ARG takes; docker warns of them."""
    declared = {name for arg in containerfile.global_args for name, _default in arg.pairs}
    for stage in containerfile.stages:
        declared |= {name for step in stage.instructions if isinstance(step, Arg) for name, _default in step.pairs}
    known = declared | PROXIES | _UNDERSTOOD
    return sorted(name for name in given if name not in known and not name.startswith("BUILDKIT_"))


def _of_platforms(platforms: Platforms) -> dict[str, str]:
    found: dict[str, str] = {}
    for prefix, platform in (("BUILD", platforms.build), ("TARGET", platforms.target)):
        found |= {
            f"{prefix}PLATFORM": str(platform),
            f"{prefix}OS": platform.os,
            f"{prefix}ARCH": platform.architecture,
            f"{prefix}VARIANT": platform.variant,
        }
    return found
