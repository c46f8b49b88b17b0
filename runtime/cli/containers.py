"""`crisp container`: docker's noun for commands that there are without it."""

from __future__ import annotations

from typing import Final

import click

from runtime.cli.docker_words import Group
from runtime.cli.main import load

COMMANDS: Final = (
    *("run", "ps", "start", "stop", "restart", "kill", "wait", "rm", "logs", "exec", "attach", "inspect", "cp", "diff"),
    *("top", "port", "stats", "commit"),
)


class _Containers(Group):
    """The commands as they are without the noun."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted((*COMMANDS, "ls"))

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name in ("ls", "list"):
            name = "ps"
        return load(name) if name in COMMANDS else None


@click.group("container", cls=_Containers)
def group() -> None:
    """Containers: the same commands as without the word."""
