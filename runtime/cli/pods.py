"""`crisp pod`: sandboxes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from runtime.cli import completion, inspect, listing
from runtime.cli.docker_words import Group
from runtime.cli.lifecycle import remove_pod
from runtime.cli.lookup import Node
from runtime.cli.output import age, errors, fail
from runtime.cli.ps import labelled, network
from runtime.client import Client

if TYPE_CHECKING:
    from proto import api_pb2 as cri

STATES = ("ready", "notready")
FILTERS: listing.Filters = {
    "id": lambda row, value: row["ID"].startswith(value),
    "name": lambda row, value: value in row["Name"],
    "namespace": lambda row, value: row["Namespace"] == value,
    "state": lambda row, value: row["State"] == value,
    "label": lambda row, value: labelled(row["Labels"], value),
}


@click.group("pod", cls=Group)
def group() -> None:
    """Pods: list, look at, stop, remove."""


@group.command("ls")
@listing.options()
@click.pass_obj
def ls(socket_path: str, quiet: bool, form: str, no_trunc: bool, wanted: tuple[str, ...]) -> None:
    """List pods, the newest first."""
    with errors(), Client(socket_path) as client:
        node = Node(client)
        pods = sorted(node.pods.values(), key=lambda pod: pod.created_at, reverse=True)
        rows: list[listing.Row] = [_row(client, node, pod) for pod in pods]
    cut, now = None if no_trunc else 13, time.time_ns()
    columns = {
        "POD ID": lambda row: row["ID"][:cut],
        "CREATED": lambda row: f"{age(row['CreatedAt'], now)} ago",
        "STATE": lambda row: row["State"],
        "NAMESPACE": lambda row: row["Namespace"],
        "NAME": lambda row: row["Name"],
        "ATTEMPT": lambda row: str(row["Attempt"]),
        "CONTAINERS": lambda row: str(len(row["Containers"])),
        "IP": lambda row: row["IP"],
    }
    listing.show(listing.chosen(rows, wanted, FILTERS), columns, form, quiet=quiet)


def _row(client: Client, node: Node, pod: cri.PodSandbox) -> dict[str, Any]:
    address, ports = network(client, pod.id)
    return {
        "ID": pod.id,
        "Name": pod.metadata.name,
        "Namespace": pod.metadata.namespace,
        "UID": pod.metadata.uid,
        "Attempt": pod.metadata.attempt,
        "State": STATES[pod.state],
        "CreatedAt": pod.created_at,
        "IP": address,
        "Ports": ports,
        "Containers": [container.metadata.name for container in node.of_pod(pod.id)],
        "Labels": dict(pod.labels),
        "Handler": pod.runtime_handler,
    }


@group.command("inspect")
@click.argument("pods", nargs=-1, required=True, shell_complete=completion.pods)
@click.option("--format", "-f", "form", default="", metavar="TEMPLATE", help="For example {{.status.network.ip}}.")
@click.pass_obj
def inspect_(socket_path: str, pods: tuple[str, ...], form: str) -> None:
    """Show pods as JSON."""
    inspect.show(socket_path, pods, ("pod",), form)


@group.command("stop")
@click.argument("pods", nargs=-1, required=True, shell_complete=completion.pods)
@click.pass_obj
def stop(socket_path: str, pods: tuple[str, ...]) -> None:
    """End pods: their containers, and their network."""
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    with errors(), Client(socket_path) as client:
        node = Node(client)
        for word in pods:
            client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=node.pod(word).id))
            click.echo(word)


@group.command("rm")
@click.argument("pods", nargs=-1, required=True, shell_complete=completion.pods)
@click.option("--force", "-f", is_flag=True, help="Also those in which something runs.")
@click.pass_obj
def rm(socket_path: str, pods: tuple[str, ...], force: bool) -> None:
    """Remove pods with all that is in them."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    with errors(), Client(socket_path) as client:
        node = Node(client)
        for word in pods:
            pod = node.pod(word)
            running = [c.metadata.name for c in node.of_pod(pod.id) if c.state == cri.CONTAINER_RUNNING]
            if running and not force:
                fail(f"{', '.join(running)} of {word} runs: stop it first, or say --force")
            remove_pod(client, pod)
            click.echo(word)
