"""Runtime handlers: the OCI runtimes of this node, probed at start, and again in the background while they fail.

A handler is listed only if a probe ran a container with it. The default handler has its own name and the empty one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from proto.errors import invalid
from runtime.config.settings import HandlerConfig

if TYPE_CHECKING:
    pass

BUILTIN: Final = ("crun", "runc")
"""Looked up in PATH without being configured; the first that works is the default."""


FIELDS: Final = ("netDevices", "memoryPolicy", "intelRdt.schemata", "intelRdt.enableMonitoring")
"""Below `linux` of the OCI configuration: what runtimes of late know, and others pass over without a word."""


@dataclass(frozen=True, slots=True)
class Features:
    """What an OCI runtime can do on this kernel."""

    version: str
    recursive_read_only: bool
    no_user_namespaces: str = ""
    """Why it cannot run pods with a user namespace; empty if it can."""
    fields: frozenset[str] = frozenset()
    """Of `FIELDS`, those that it says it knows."""
    program: str = ""
    """What it calls itself: crun, runc, …; empty for a script, which may say what it calls says, and do more than that."""

    @property
    def user_namespaces(self) -> bool:
        """Whether it can run pods with a user namespace."""
        return not self.no_user_namespaces


@dataclass(frozen=True, slots=True)
class Handler:
    """One OCI runtime that works."""

    name: str
    path: str
    root: str
    """Its state directory."""
    config: HandlerConfig
    features: Features
    hide_unified: bool
    """It refuses a hybrid host unless the cgroup2 mount is out of its sight."""
    systemd_cgroups: bool

    @property
    def delete_is_removal(self) -> bool:
        """Whether a shim can delete what has ended itself: with runtimes whose `delete` is known to do nothing else."""
        return self.features.program in BUILTIN and not self.systemd_cgroups

    @property
    def start_is_a_byte(self) -> bool:
        """Whether a shim can start what was created without hooks for that: runtimes wait in ways of their own."""
        return self.features.program == "crun"

    @property
    def seals_itself(self) -> bool:
        """Whether each call copies or mounts the program, and executes it once more, unless it runs from a sealed copy."""
        return self.features.program == "crun"

    def describe(self) -> dict[str, Any]:
        """As JSON for `crictl info`."""
        return {"path": self.path, "version": self.features.version, "root": self.root}


class Handlers:
    """All handlers of the node."""

    def __init__(
        self, found: dict[str, Handler], problems: dict[str, str], default: str, *, automatic: bool = False
    ) -> None:
        """`automatic`: nobody has named the default; if none works, the first that does will be it."""
        self._automatic = automatic
        self._found = found
        self._problems = problems
        self._default = default

    @property
    def usable(self) -> bool:
        """Whether pods that name no handler can run."""
        return self._default in self._found

    @property
    def default(self) -> str:
        """Name of the default handler."""
        return self._default

    def problems(self) -> dict[str, str]:
        """Why handlers that were configured or found do not work."""
        return dict(self._problems)

    def tried_again(self, name: str, result: Handler | str) -> None:
        """What a further trial of a handler that did not work has found: the handler, or why it still does not."""
        if isinstance(result, Handler):
            self._problems.pop(name, None)
            self._found[name] = result
            if self._automatic and not self.usable:
                self._default = name
        else:
            self._problems[name] = result

    def get(self, name: str) -> Handler:
        """The handler of a RuntimeClass; the empty name is the default's."""
        handler = self._found.get(name or self._default)
        if handler is None:
            why = self._problems.get(name or self._default, "it is not configured")
            known = ", ".join(sorted(self._found)) or "none"
            raise invalid(f"no runtime handler {name or self._default!r}: {why}; handlers here: {known}")
        return handler

    def named(self) -> Iterator[tuple[str, Handler]]:
        """Names with their handlers, the empty name first."""
        if self.usable:
            yield "", self._found[self._default]
        yield from sorted(self._found.items())
