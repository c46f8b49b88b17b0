"""`crisp uninstall`: take away what crisp has made on this host."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runtime.cli.output import errors, fail

if TYPE_CHECKING:
    from runtime.config.settings import Config


@click.command("uninstall")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="Configuration file of the daemon.")
@click.option("--root", type=click.Path(path_type=Path), help="Its state that survives a reboot.")
@click.option("--state", type=click.Path(path_type=Path), help="Its state that does not.")
@click.option("--end-pods", is_flag=True, help="Stop and remove pods that run.")
@click.option("--grace", default=10, show_default=True, help="Seconds that their containers have to end by themselves.")
@click.option("--keep-data", is_flag=True, help="Keep images and what else survives a reboot.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(
    config_path: Path | None,
    root: Path | None,
    state: Path | None,
    end_pods: bool,
    grace: int,
    keep_data: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Remove what crisp has made on this host and leaves when its daemon ends: pods, network, cgroups, mounts, files.

    The daemon must have ended. The program itself is removed by whatever installed it; the Debian package does this here
    when it is removed.
    """
    from runtime import uninstall  # noqa: PLC0415  --help needs none of it
    from runtime.cli.serve import override  # noqa: PLC0415
    from runtime.config import logs, settings  # noqa: PLC0415  --help needs none of it

    if os.geteuid() != 0:
        fail("uninstall runs as root")
    with errors():
        config = override(settings.load(config_path), None, root, state)
        logs.configure(settings.LogConfig(level="warning"))
        found = asyncio.run(uninstall.traces(config, keep_data=keep_data))
        if dry_run or not found:
            click.echo("\n".join(found) or "nothing of crisp is here", err=not found)
            return
        if not yes:
            click.echo("\n".join(found))
            click.confirm("Remove all of this?", abort=True)
        left = asyncio.run(_run(config, end_pods=end_pods, keep_data=keep_data, grace=grace))
    for trace in found:
        click.echo(f"{'STILL THERE' if trace in left else 'removed'}  {trace}")
    if left:
        fail(f"{len(left)} things are still there; end what uses them and say this again")


async def _run(config: Config, *, end_pods: bool, keep_data: bool, grace: int) -> list[str]:
    from runtime import uninstall  # noqa: PLC0415

    await uninstall.uninstall(config, end_pods=end_pods, keep_data=keep_data, grace_seconds=grace)
    return await uninstall.traces(config, keep_data=keep_data)
