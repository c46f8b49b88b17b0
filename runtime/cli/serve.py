"""`crisp serve`: the daemon in the foreground."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import importlib.util
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.cli.output import errors

if TYPE_CHECKING:
    from runtime.config.settings import Config
    from runtime.pods.node import Node


@click.command("serve")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="Configuration file.")
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="Socket to serve CRI on.")
@click.option("--root", type=click.Path(path_type=Path), help="State that survives a reboot.")
@click.option("--state", type=click.Path(path_type=Path), help="State that does not.")
def command(config_path: Path | None, socket_path: Path | None, root: Path | None, state: Path | None) -> None:
    """Serve CRI until SIGTERM or Ctrl-C; containers go on without the daemon."""
    _leave_out()
    from runtime import daemon  # noqa: PLC0415  the other commands need none of it
    from runtime.config import logs, settings  # noqa: PLC0415  the other commands need none of it

    with errors():

        def load() -> Config:
            return override(settings.load(config_path), socket_path, root, state)

        config = load()
        logs.configure(config.log)
        running = asyncio.run(daemon.serve(config, _announce, load))
    if running and sys.stderr.isatty():
        plural = "s go" if running > 1 else " goes"
        click.echo(
            f"crisp has ended; {running} container{plural} on without it. Start it again to manage them.",
            err=True,
        )


def _leave_out() -> None:
    """Keep modules out of the daemon that it has no use for, before anything imports them.

    structlog would load rich, for coloured tracebacks: 7 MiB. And pyroute2 by itself all that it has, a database of the
    network among it, of which the parts that are named at the imports here need a third: 5 MiB, and 50 ms at the start.
    """
    sys.modules["rich"] = None  # type: ignore[assignment]
    found = importlib.util.find_spec("pyroute2")
    if found is not None and found.submodule_search_locations is not None:
        package = types.ModuleType("pyroute2")
        package.__path__ = found.submodule_search_locations
        package.__spec__ = found
        sys.modules["pyroute2"] = package


def override(settings: Config, socket_path: Path | None, root: Path | None, state: Path | None) -> Config:
    """Options win over the file; a state directory of its own brings a socket of its own."""
    if state is not None and socket_path is None:
        socket_path = state / "crisp.sock"
    return dataclasses.replace(
        settings,
        root=(root or settings.root).absolute(),
        state=(state or settings.state).absolute(),
        socket=(socket_path or settings.socket).absolute(),
    )


def _announce(node: Node) -> None:
    """Say what runs here and what to type next."""
    gc.collect()
    gc.freeze()  # what start-up made lives as long as the daemon
    if not sys.stderr.isatty():
        return
    host, handlers = node.host, ", ".join(f"{n} {h.features.version}" for n, h in node.handlers.named() if n)
    option = "" if str(node.config.socket) == "/run/crisp/crisp.sock" else f" --socket {node.config.socket}"
    click.echo(
        f"crisp serves CRI on unix://{node.config.socket}\n"
        f"  runs on    cgroup {host.hierarchies.mode.value}, OCI runtimes {handlers}, bridge {node.config.network.bridge}\n"
        f"  keeps      {node.paths.root} (images, records), {node.paths.state} (running pods)\n"
        f"  try        crisp{option} run --rootfs DIR -- /bin/sh -c 'echo hello'\n"
        f"             crisp{option} image pull REFERENCE\n"
        f"             crisp{option} ps\n"
        f"  Ctrl-C ends the daemon; containers go on.",
        err=True,
    )
