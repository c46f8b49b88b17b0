"""The `crisp` command: `serve` is the daemon, everything else talks to it over its socket or looks at the host."""

from __future__ import annotations

import os

import click

from proto.version import VERSION
from runtime.cli import (
    check,
    completion,
    configuration,
    events,
    images,
    ps,
    run,
    serve,
    streams,
    support_bundle,
    top,
    uninstall,
)
from runtime.client import DEFAULT_SOCKET


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
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


main.add_command(serve.command)
main.add_command(check.command)
main.add_command(configuration.command)
main.add_command(run.command)
main.add_command(ps.command)
main.add_command(top.command)
main.add_command(events.command)
main.add_command(images.group)
main.add_command(streams.exec_)
main.add_command(streams.attach)
main.add_command(streams.port_forward)
main.add_command(uninstall.command)
main.add_command(support_bundle.command)
main.add_command(completion.command)
