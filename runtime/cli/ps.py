"""`crisp ps`: containers, and the pods that they are in."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import click

from proto.errors import Code
from runtime.cli import listing
from runtime.cli.lookup import Node
from runtime.cli.output import age, errors, fail
from runtime.client import CallError, Client

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proto import api_pb2 as cri

ID_DIGITS = 12
"""Of an image's id, from which on they are taken for one."""
STATES = ("created", "running", "exited", "unknown")


def _pattern(text: str) -> re.Pattern[str]:
    """Any part of a name fits, as docker has it: ^name$ is all of it."""
    try:
        return re.compile(text.replace("^/", "^"))
    except re.error as error:
        fail(f"--filter name={text}: {error}", 2)


def _is_of_image(row: listing.Row, value: str) -> bool:
    """Whether it is called so, with or without docker's registry and the tag, or is the beginning of its id."""
    name = row["Image"].removeprefix("docker.io/").removeprefix("library/")
    spellings = (row["Image"], name, name.rpartition(":")[0])
    short = row["ImageID"].removeprefix("sha256:")
    return value in (row["ImageID"], *spellings) or (len(value) >= ID_DIGITS and short.startswith(value))


FILTERS: listing.Filters = {
    "id": lambda row, value: row["ID"].startswith(value),
    "name": lambda row, value: _pattern(value).search(row["Names"]) is not None,
    "pod": lambda row, value: value in (row["Pod"], row["PodID"]) or value == row["Pod"].partition("/")[2],
    "label": lambda row, value: labelled(row["Labels"], value),
    "state": lambda row, value: row["State"] == value,
    "status": lambda row, value: row["State"] == value,
    "image": _is_of_image,
    "ancestor": _is_of_image,
    "exited": lambda row, value: row["State"] == "exited" and str(row["ExitCode"]) == value,
}


@click.command("ps")
@click.option("--all", "-a", "everything", is_flag=True, help="Also what has ended.")
@click.option("--last", "-n", type=int, default=-1, metavar="NUMBER", help="The newest ones, whether they run or not.")
@click.option("--latest", "-l", is_flag=True, help="The newest one, whether it runs or not.")
@listing.options()
@click.pass_obj
def command(
    socket_path: str,
    everything: bool,
    last: int,
    latest: bool,
    quiet: bool,
    form: str,
    no_trunc: bool,
    wanted: tuple[str, ...],
) -> None:
    """List containers, the newest first."""
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    last = 1 if latest else last
    everything = everything or last >= 0 or any(text.startswith(("state=", "status=", "exited=")) for text in wanted)
    with errors(), Client(socket_path) as client:
        node = Node(client)
        containers = [c for c in node.containers if everything or c.state == cri.CONTAINER_RUNNING]
        rows = _rows(client, node, sorted(containers, key=lambda c: c.created_at, reverse=True))
    rows = listing.chosen(rows, wanted, FILTERS)[: last if last >= 0 else None]
    cut = None if no_trunc else 13
    columns = {
        "CONTAINER": lambda row: row["ID"][:cut],
        "IMAGE": lambda row: row["Image"] if no_trunc else _short_image(row["Image"]),
        "STATUS": lambda row: row["Status"],
        "NAME": lambda row: row["Names"],
        "POD": lambda row: row["Pod"],
        "POD ID": lambda row: row["PodID"][:cut],
        "IP": lambda row: row["IP"],
        "PORTS": lambda row: row["Ports"],
    }
    listing.show(rows, columns, form, quiet=quiet)


def _rows(client: Client, node: Node, containers: list[cri.Container]) -> list[listing.Row]:
    from proto import api_pb2 as cri  # noqa: PLC0415

    now = time.time_ns()
    pods = looks(client, {c.pod_sandbox_id for c in containers})
    statuses = {status.id: status for pod in pods.values() for status in pod.containers_statuses}
    ways = {key: _network(pod) for key, pod in pods.items()}
    return [
        _row(node, container, statuses.get(container.id, cri.ContainerStatus()), *ways[container.pod_sandbox_id], now)
        for container in containers
    ]


def _row(
    node: Node, container: cri.Container, status: cri.ContainerStatus, address: str, ports: str, now: int
) -> dict[str, Any]:
    state = STATES[container.state]
    return {
        "ID": container.id,
        "Names": container.metadata.name,
        "Image": container.image.user_specified_image or container.image.image,
        "ImageID": container.image_id,
        "State": state,
        "Status": _status(state, status, now),
        "ExitCode": status.exit_code,
        "CreatedAt": container.created_at,
        "StartedAt": status.started_at,
        "FinishedAt": status.finished_at,
        "Attempt": container.metadata.attempt,
        "Pod": node.pod_name(container),
        "PodID": container.pod_sandbox_id,
        "IP": address,
        "Ports": ports,
        "Labels": dict(container.labels),
    }


def _status(state: str, status: cri.ContainerStatus, now: int) -> str:
    if state == "running":
        return f"Up {age(status.started_at, now)}"
    if state == "exited":
        return f"Exited ({status.exit_code}) {age(status.finished_at, now)} ago"
    return state.capitalize()


def looks(client: Client, pods: Iterable[str]) -> dict[str, cri.PodSandboxStatusResponse]:
    """Pods with their containers, all asked for at once; an empty reply for one that has gone meanwhile."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    asked = [*pods]
    requests = (cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True) for pod in asked)
    found = {}
    for pod, reply in zip(asked, client.runtime.PodSandboxStatus.each(requests), strict=True):
        if isinstance(reply, CallError) and reply.code is not Code.NOT_FOUND:
            raise reply
        found[pod] = cri.PodSandboxStatusResponse() if isinstance(reply, CallError) else reply
    return found


def network(client: Client, pod: str) -> tuple[str, str]:
    """A pod's first address, and its ports on the node."""
    return _network(looks(client, (pod,))[pod])


def _network(pod: cri.PodSandboxStatusResponse) -> tuple[str, str]:
    config = json.loads(pod.info["info"])["config"] if pod.info else {}
    return pod.status.network.ip, ", ".join(ports(config.get("port_mappings", ())))


def ports(mappings: Iterable[dict[str, Any]]) -> list[str]:
    """Mapped ports as docker writes them: 0.0.0.0:8080->80/tcp."""
    written = []
    for mapping in mappings:
        if mapping.get("host_port"):
            host = mapping.get("host_ip") or "0.0.0.0"
            host = f"[{host}]" if ":" in host else host
            protocol = mapping.get("protocol", "TCP").lower()
            written.append(f"{host}:{mapping['host_port']}->{mapping['container_port']}/{protocol}")
    return written


def labelled(labels: dict[str, str], wanted: str) -> bool:
    """Whether there is a label NAME, or NAME=VALUE."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _short_image(name: str) -> str:
    return name.removeprefix("sha256:")[:13] if name.startswith("sha256:") else name
