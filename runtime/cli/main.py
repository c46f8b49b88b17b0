"""The `crisp` command: `serve` is the daemon, everything else talks to it over its socket or looks at the host."""

from __future__ import annotations

import gc
import importlib
import os
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from proto.version import VERSION
from runtime.cli.docker_words import Group, refuse_lacking

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

DEFAULT_SOCKET: Final = "/run/crisp/crisp.sock"

COMMANDS: Final = {
    "serve": ("serve.command", "Serve CRI until SIGTERM or Ctrl-C"),
    "run": ("run.command", "Run a container, in a pod of its own, and show its output"),
    "ps": ("ps.command", "List containers, the newest first"),
    "start": ("lifecycle.start", "Start containers that were created"),
    "stop": ("lifecycle.stop", "End containers: their stop signal, some time, then SIGKILL"),
    "restart": ("lifecycle.restart", "End containers, and make each anew"),
    "kill": ("lifecycle.kill", "Send a signal to the containers' first process"),
    "wait": ("lifecycle.wait", "Wait until containers have ended"),
    "rm": ("lifecycle.rm", "Remove containers"),
    "logs": ("logs.command", "Show a container's output; its standard error goes to ours"),
    "exec": ("streams.exec_", "Run a command in a running container"),
    "attach": ("streams.attach", "Join a running container"),
    "port-forward": ("streams.port_forward", "Reach ports of a pod from here"),
    "inspect": ("inspect.command", "Show containers, pods and images as JSON"),
    "cp": ("files.cp", "Copy files out of or into a running container"),
    "diff": ("files.diff", "List what a container has changed of its image"),
    "top": ("processes.top", "List a container's processes, with their pids on this node"),
    "port": ("processes.port", "List the ports of the node that lead to a container's pod"),
    "stats": ("stats.command", "Show CPU, memory, disk and network of pods and containers"),
    "events": ("events.command", "Print life-cycle events until Ctrl-C"),
    "container": ("containers.group", "Containers: the same commands as without the word"),
    "pod": ("pods.group", "Pods: list, look at, stop, remove"),
    "image": ("images.group", "Images: list, fetch, move, make, remove"),
    "build": ("build.command", "Build an image from a Containerfile (or Dockerfile) and a directory of files"),
    "system": ("system.group", "The disk that crisp takes"),
    # As docker calls them.
    "images": ("images.ls", "List images"),
    "pull": ("images.pull", "Fetch an image from its registry"),
    "push": ("images.push", "Upload an image to its registry, or to TARGET"),
    "history": ("images.history", "List how an image was made, the newest step first"),
    "rmi": ("images.rm", "Remove images: a name, and the image with its last one"),
    "tag": ("images.tag", "Give an image one more NAME"),
    "commit": ("images.commit", "Make an image of what a container has written"),
    "save": ("images.save", "Write images to an archive, by default to the standard output"),
    "load": ("images.load", "Read an archive, by default from the standard input"),
    "info": ("about.info", "Show what the daemon says of itself"),
    "version": ("about.version", "Show the version of this command"),
    "check": ("check.command", "Tell whether this host can run crisp"),
    "config": ("configuration.command", "Print a configuration file with every key"),
    "support-bundle": ("support_bundle.command", "Collect state, without secrets"),
    "uninstall": ("uninstall.command", "Remove what crisp has made on this host"),
    "completion": ("completion.command", "Print a completion script"),
}
"""Where each is, module of this room and what it calls the command, and how its help begins: to list them loads none."""


def load(name: str) -> click.Command:
    """The command of this name, which is one of COMMANDS."""
    module, _, attribute = COMMANDS[name][0].partition(".")
    found: click.Command = getattr(importlib.import_module(f"runtime.cli.{module}"), attribute)
    gc.freeze()
    gc.enable()
    return found


class _Commands(Group):
    """Loads the module of a command when that is asked for: most are not, and each costs time."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        return load(name) if name in COMMANDS else None

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As in any group; `help` is the same as --help."""
        if words[0] == "help":
            words = [*words[1:2], "--help"]
            if len(words) == 1:
                click.echo(context.get_help())
                context.exit()
        refuse_lacking(words[0])
        return super().resolve_command(context, words)

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        """A shell asks at each tab."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415  the commands themselves need none

        names = [name for name in sorted(COMMANDS) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=COMMANDS[name][1]) for name in names]
        return items + click.Command.shell_complete(self, context, incomplete)

    def make_context(self, *words: Any, **named: Any) -> click.Context:
        """Also --help may meet a full disk."""
        try:
            return super().make_context(*words, **named)
        except OSError as error:
            _say_and_end(error)

    def invoke(self, context: click.Context) -> Any:
        """What cannot be read or written is said in one line, wherever a command meets it; of a daemon's one wants all."""
        try:
            return super().invoke(context)
        except (OSError, UnicodeEncodeError) as error:
            if context.invoked_subcommand == "serve":
                raise
            _say_and_end(error)


def _say_and_end(error: Exception) -> NoReturn:
    from runtime.cli.output import errors  # noqa: PLC0415  --help needs no gRPC

    with errors():
        raise error
    raise AssertionError("errors() ends the command")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, "-v", "--version", prog_name="crisp")
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
