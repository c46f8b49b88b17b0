"""The `crisp` command: `serve` is the daemon, everything else talks to it over its socket or looks at the host."""

from __future__ import annotations

import gc
import importlib
import os
from typing import Any, Final

import click

from proto.version import VERSION

DEFAULT_SOCKET: Final = "/run/crisp/crisp.sock"

COMMANDS: Final = {
    "serve": "serve.command",
    "run": "run.command",
    "ps": "ps.command",
    "start": "lifecycle.start",
    "stop": "lifecycle.stop",
    "restart": "lifecycle.restart",
    "kill": "lifecycle.kill",
    "wait": "lifecycle.wait",
    "rm": "lifecycle.rm",
    "logs": "logs.command",
    "exec": "streams.exec_",
    "attach": "streams.attach",
    "port-forward": "streams.port_forward",
    "inspect": "inspect.command",
    "cp": "files.cp",
    "diff": "files.diff",
    "top": "processes.top",
    "port": "processes.port",
    "stats": "stats.command",
    "events": "events.command",
    "pod": "pods.group",
    "image": "images.group",
    "build": "build.command",
    "system": "system.group",
    # As docker calls them.
    "images": "images.ls",
    "pull": "images.pull",
    "push": "images.push",
    "history": "images.history",
    "rmi": "images.rm",
    "tag": "images.tag",
    "commit": "images.commit",
    "save": "images.save",
    "load": "images.load",
    "info": "about.info",
    "version": "about.version",
    "check": "check.command",
    "config": "configuration.command",
    "support-bundle": "support_bundle.command",
    "uninstall": "uninstall.command",
    "completion": "completion.command",
}
"""Where each is: module of this room, and what it calls the command."""


def load(name: str) -> click.Command:
    """The command of this name, which is one of COMMANDS."""
    module, _, attribute = COMMANDS[name].partition(".")
    found: click.Command = getattr(importlib.import_module(f"runtime.cli.{module}"), attribute)
    gc.freeze()
    gc.enable()
    return found


class _Commands(click.Group):
    """Loads the module of a command when that is asked for: most are not, and each costs time."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        return load(name) if name in COMMANDS else None

    def invoke(self, context: click.Context) -> Any:
        """What cannot be read or written is said in one line, wherever a command meets it; of a daemon's one wants all."""
        try:
            return super().invoke(context)
        except (OSError, UnicodeEncodeError):
            if context.invoked_subcommand == "serve":
                raise
            from runtime.cli.output import errors  # noqa: PLC0415  --help needs no gRPC

            with errors():
                raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="crisp")
@click.option(
    "--socket",
    "socket_path",
    default=DEFAULT_SOCKET,
    show_default=True,
    envvar="CRISP_SOCKET",
    help="Socket of the daemon to talk to: a path, or unix:// with a path.",
)
@click.pass_context
def main(context: click.Context, socket_path: str) -> None:
    """A Kubernetes CRI runtime."""
    _hold_standard_descriptors()
    context.obj = socket_path.removeprefix("unix://")


def _hold_standard_descriptors() -> None:
    """Where one is closed, the next file or connection would get its number, and what is printed with it.

    Writing to what stands there instead is an error, as writing to a closed descriptor is.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number else os.O_WRONLY)
