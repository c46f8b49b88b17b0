"""`crisp events`: what happens to pods and containers, as it happens."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

import click

from runtime.cli import listing
from runtime.cli.output import clean, errors
from runtime.client import Client

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proto import api_pb2 as cri


FILTERS: listing.Filters = {
    "event": lambda row, value: row["event"] == value,
    "kind": lambda row, value: row["kind"] == value,
    "type": lambda row, value: row["kind"] == value,
    "pod": lambda row, value: value in (row["pod"], row["pod"].partition("/")[2]),
    "container": lambda row, value: row.get("container") == value or row["id"].startswith(value),
}


@click.command("events")
@click.option("--format", "form", default="text", metavar="text|json|TEMPLATE", help="json: an object per line.")
@click.option("--filter", "-f", "wanted", multiple=True, metavar="KEY=VALUE", help="Repeatable.")
@click.pass_obj
def command(socket_path: str, form: str, wanted: tuple[str, ...]) -> None:
    """Print life-cycle events until Ctrl-C."""
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    listing.chosen((), wanted, FILTERS)  # what means nothing is said now, and not with the first event
    template = listing.parse(form) if form not in ("text", "json") else None
    with errors(), Client(socket_path) as client:
        stream = client.runtime.GetContainerEvents(cri.GetEventsRequest())
        try:
            for event in stream:
                for found in listing.chosen((describe(event),), wanted, FILTERS):
                    if template is not None:
                        click.echo(template.fill(found))
                    else:
                        click.echo(json.dumps(found) if form == "json" else line(found))
        except KeyboardInterrupt:
            stream.cancel()


def describe(event: cri.ContainerEventResponse) -> dict[str, Any]:
    """An event as an object; `exit_code` and `reason` where a container has ended."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    metadata = event.pod_sandbox_status.metadata
    found: dict[str, Any] = {
        "time": event.created_at,
        "event": cri.ContainerEventType.Name(event.container_event_type).split("_")[1].lower(),
        "pod": f"{metadata.namespace}/{metadata.name}",
        "id": event.container_id,
        "kind": "pod" if event.container_id == event.pod_sandbox_status.id else "container",
    }
    for status in event.containers_statuses:
        if status.id == event.container_id:
            found["container"] = status.metadata.name
            if event.container_event_type == cri.CONTAINER_STOPPED_EVENT:
                found |= {"exit_code": status.exit_code, "reason": status.reason}
    return found


def line(found: Mapping[str, Any]) -> str:
    """An event as people read it."""
    moment = datetime.datetime.fromtimestamp(found["time"] / 1e9).astimezone()
    words = [moment.strftime("%H:%M:%S.%f")[:-3], f"{found['event']:<8}", f"{found['kind']:<10}", found["id"][:13]]
    words.append(" ".join(filter(None, (found["pod"], found.get("container", "")))))
    if "reason" in found:
        words.append(f"{found['reason']} ({found['exit_code']})")
    return clean("  ".join(words), lines=False)
