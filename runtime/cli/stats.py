"""`crisp stats`: what pods and containers use, live."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from runtime.cli.output import errors, size, table
from runtime.client import Client

if TYPE_CHECKING:
    from proto import api_pb2 as cri

HEADER = ("POD", "CONTAINER", "CPU", "MEMORY", "LIMIT", "SWAP", "DISK", "RECEIVED", "SENT")
FIRST_SECONDS = 1.0


@click.command("stats")
@click.option("--interval", "-i", default=2.0, show_default=True, type=click.FloatRange(min=0.2), help="Seconds.")
@click.option("--no-stream", "once", is_flag=True, help="Print one table and end; so it is when the output is no terminal.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", help="json: once, an object per line."
)
@click.pass_obj
def command(socket_path: str, interval: float, once: bool, form: str) -> None:
    """Show CPU, memory, disk and network of pods and containers, the busiest first.

    CPU is in percent of one processor, memory is the working set. Network counts since the pod began.
    """
    with errors(), Client(socket_path) as client:
        look(client)  # a rate of CPU use needs two looks
        time.sleep(min(interval, FIRST_SECONDS))
        rows = look(client)
        if form == "json":
            for row in rows:
                click.echo(json.dumps(row))
        elif once or not sys.stdout.isatty():
            table(HEADER, [cells(row) for row in rows])
        else:
            _live(client, rows, interval)


def look(client: Client) -> list[dict[str, Any]]:
    """One row for each pod and container; bytes, and CPU in thousandths of a percent of a processor."""
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    stats = client.runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest()).stats
    rows = []
    for pod in sorted(stats, key=lambda p: p.linux.cpu.usage_nano_cores.value, reverse=True):
        metadata, network = pod.attributes.metadata, pod.linux.network.default_interface
        name = f"{metadata.namespace}/{metadata.name}"
        received, sent = network.rx_bytes.value, network.tx_bytes.value
        rows.append(_row(name, "", pod.linux) | {"received": received, "sent": sent})
        containers = sorted(pod.linux.containers, key=lambda c: c.cpu.usage_nano_cores.value, reverse=True)
        rows += [_row(name, c.attributes.metadata.name, c) for c in containers]
    return rows


def _row(pod: str, container: str, stats: cri.LinuxPodSandboxStats | cri.ContainerStats) -> dict[str, Any]:
    memory = stats.memory
    row: dict[str, Any] = {
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


def _live(client: Client, rows: list[dict[str, Any]], interval: float) -> None:
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
                live.update(draw(look(client)), refresh=True)
    except KeyboardInterrupt:
        return
