"""`crisp info` and `crisp version`."""

from __future__ import annotations

import json

import click

from proto.errors import CrispError
from proto.version import VERSION
from runtime.cli import listing
from runtime.cli.inspect import decoded
from runtime.cli.output import errors
from runtime.client import Client


@click.command("info")
@click.option("--format", "-f", "form", default="", metavar="TEMPLATE", help="For example {{.info.config}}.")
@click.pass_obj
def info(socket_path: str, form: str) -> None:
    """Show what the daemon says of itself, its conditions and its handlers, as JSON."""
    from google.protobuf import json_format  # noqa: PLC0415  --help needs no protobuf

    from proto import api_pb2 as cri  # noqa: PLC0415

    with errors(), Client(socket_path) as client:
        reply = client.runtime.Status(cri.StatusRequest(verbose=True))
    shown = json_format.MessageToDict(reply, always_print_fields_with_no_presence=True)
    shown["info"] = decoded(shown.get("info", {}))
    click.echo(listing.parse(form).fill(shown) if form else json.dumps(shown, indent=2))


@click.command("version")
@click.pass_obj
def version(socket_path: str) -> None:
    """Show the version of this command and, if one answers, of the daemon and its CRI."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    click.echo(f"Client: crisp {VERSION}")
    try:
        with errors(), Client(socket_path) as client:
            reply = client.runtime.Version(cri.VersionRequest(version="v1"))
    except CrispError:
        raise SystemExit(1) from None
    click.echo(f"Server: {reply.runtime_name} {reply.runtime_version}, CRI {reply.runtime_api_version}")
