"""`crisp stats`: what pods and containers use, live."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from runtime.cli import completion, listing
from runtime.cli.lookup import Node
from runtime.cli.output import errors, size, table
from runtime.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from proto import api_pb2 as cri

HEADER = ("POD", "CONTAINER", "CPU", "MEMORY", "LIMIT", "SWAP", "DISK", "RECEIVED", "SENT")
FIRST_SECONDS = 1.0


FILTERS: listing.Filters = {
    "pod": lambda row, value: value in (row["pod"], row["pod"].partition("/")[2]),
    "container": lambda row, value: row["container"] == value,
}


@click.command("stats")
@click.argument("names", nargs=-1, shell_complete=completion.containers)
@click.option("--interval", "-i", default=2.0, show_default=True, type=click.FloatRange(min=0.2), help="Seconds.")
@click.option("--no-stream", "once", is_flag=True, help="Print one table and end; so it is when the output is no terminal.")
@click.option("--format", "form", default="table", metavar="json|table|TEMPLATE", help="Other than table: once.")
@click.option("--filter", "-f", "wanted", multiple=True, metavar="KEY=VALUE", help="Repeatable.")
@click.pass_obj
def command(
    socket_path: str, names: tuple[str, ...], interval: float, once: bool, form: str, wanted: tuple[str, ...]
) -> None:
    """Show CPU, memory, disk and network of pods and containers, the busiest first: of all, or of those named.

    CPU is in percent of one processor, memory is the working set. Network counts since the pod began.
    """
    listing.chosen((), wanted, FILTERS)
    with errors(), Client(socket_path) as client:
        meant = _meant(client, names) if names else None

        def found() -> list[dict[str, Any]]:
            rows = [row for row in look(client) if meant is None or row["id"] in meant]
            return [dict(row) for row in listing.chosen(rows, wanted, FILTERS)]

        found()  # a rate of CPU use needs two looks
        time.sleep(min(interval, FIRST_SECONDS))
        rows = found()
        if form != "table":
            listing.show(rows, {}, form, quiet=False)
        elif once or not os.isatty(1):
            table(HEADER, [cells(row) for row in rows])
        else:
            _live(found, rows, interval)


def _meant(client: Client, names: tuple[str, ...]) -> set[str]:
    """The ids of these containers and pods; a pod's name alone means all that is in it."""
    node = Node(client)
    ids: set[str] = set()
    for name in names:
        if node.is_pod(name):
            pod = node.pod(name).id
            ids |= {pod, *(container.id for container in node.of_pod(pod))}
        else:
            ids.add(node.container(name).id)
    return ids


def look(client: Client) -> list[dict[str, Any]]:
    """One row for each pod and container; bytes, and CPU in thousandths of a percent of a processor."""
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    stats = client.runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest()).stats
    rows = []
    for pod in sorted(stats, key=lambda p: p.linux.cpu.usage_nano_cores.value, reverse=True):
        metadata, network = pod.attributes.metadata, pod.linux.network.default_interface
        name = f"{metadata.namespace}/{metadata.name}"
        received, sent = network.rx_bytes.value, network.tx_bytes.value
        rows.append(_row(pod.attributes.id, name, "", pod.linux) | {"received": received, "sent": sent})
        containers = sorted(pod.linux.containers, key=lambda c: c.cpu.usage_nano_cores.value, reverse=True)
        rows += [_row(c.attributes.id, name, c.attributes.metadata.name, c) for c in containers]
    return rows


def _row(key: str, pod: str, container: str, stats: cri.LinuxPodSandboxStats | cri.ContainerStats) -> dict[str, Any]:
    memory = stats.memory
    row: dict[str, Any] = {
        "id": key,
        "pod": pod,
        "container": container,
        "cpu_nano_cores": stats.cpu.usage_nano_cores.value,
        "memory": memory.working_set_bytes.value,
    }
    if memory.HasField("available_bytes"):
        row["memory_limit"] = memory.working_set_bytes.value + memory.available_bytes.value
    if container:
        row["swap"] = stats.swap.swap_usage_bytes.value  # type: ignore[union-attr]
        row["disk"] = stats.writable_layer.used_bytes.value  # type: ignore[union-attr]
    return row


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as people read it; a container's pod is not repeated."""

    def amount(key: str) -> str:
        return size(row[key]) if key in row else ""

    cpu = f"{row['cpu_nano_cores'] / 10_000_000:.1f} %"
    pod = row["pod"] if not row["container"] else ""
    figures = (amount(key) for key in ("memory", "memory_limit", "swap", "disk", "received", "sent"))
    return (pod, row["container"], cpu, *figures)


def _live(found: Callable[[], list[dict[str, Any]]], rows: list[dict[str, Any]], interval: float) -> None:
    """Draw until Ctrl-C."""
    from rich.live import Live  # noqa: PLC0415  only where a person looks on
    from rich.table import Table  # noqa: PLC0415

    def draw(rows: list[dict[str, Any]]) -> Table:
        drawn = Table(box=None, pad_edge=False)
        for index, title in enumerate(HEADER):
            drawn.add_column(title, justify="left" if index < 2 else "right")
        for row in rows:
            drawn.add_row(*cells(row), style="bold" if not row["container"] else "")
        return drawn

    try:
        with Live(draw(rows), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(draw(found()), refresh=True)
    except KeyboardInterrupt:
        return
