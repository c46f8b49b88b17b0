"""`crisp config`: the configuration file with every key."""

from __future__ import annotations

import click


@click.command("config")
def command() -> None:
    """Print a configuration file with every key, its default and what it means."""
    from runtime.config.document import document  # noqa: PLC0415

    click.echo(document(), nl=False)
