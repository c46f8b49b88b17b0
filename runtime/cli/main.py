"""The `crisp` command: `serve` is the daemon, everything else talks to it over its socket or looks at the host."""

from __future__ import annotations

from pathlib import Path

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
    type=click.Path(path_type=Path),
    help="Socket of the daemon to talk to.",
)
@click.pass_context
def main(context: click.Context, socket_path: Path) -> None:
    """A Kubernetes CRI runtime."""
    context.obj = str(socket_path)


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
