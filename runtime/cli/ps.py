"""`crisp ps`: pods with their containers."""

from __future__ import annotations

import json
import time

import click

from runtime.cli.output import age, errors, table
from runtime.client import Client

STATES = ("created", "running", "exited", "unknown")


@click.command("ps")
@click.option("--all", "-a", "everything", is_flag=True, help="Also what has ended.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def command(socket_path: str, everything: bool, as_json: bool) -> None:
    """List containers, pod by pod."""
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    with errors(), Client(socket_path) as client:
        sandboxes = {s.id: s for s in client.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items}
        containers = client.runtime.ListContainers(cri.ListContainersRequest()).containers
    rows = []
    for container in sorted(containers, key=lambda c: c.created_at, reverse=True):
        if container.state != cri.CONTAINER_RUNNING and not everything:
            continue
        sandbox = sandboxes.get(container.pod_sandbox_id)
        rows.append(
            {
                "container": container.id,
                "name": container.metadata.name,
                "attempt": container.metadata.attempt,
                "state": STATES[container.state],
                "created_at": container.created_at,
                "image": container.image.image,
                "pod": container.pod_sandbox_id,
                "pod_name": f"{sandbox.metadata.namespace}/{sandbox.metadata.name}" if sandbox else "",
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    now = time.time_ns()
    table(
        ("CONTAINER", "NAME", "STATE", "CREATED", "POD", "POD NAME"),
        [
            (
                r["container"][:13],
                r["name"],
                r["state"],
                age(r["created_at"], now),
                r["pod"][:13],
                r["pod_name"],
            )
            for r in rows
        ],
    )
