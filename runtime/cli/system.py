"""`crisp system`: what crisp takes of the disk, and what of it can go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from runtime.cli import listing
from runtime.cli.docker_words import Group
from runtime.cli.output import errors, size
from runtime.client import Client

if TYPE_CHECKING:
    from proto import admin_pb2 as admin


@click.group("system", cls=Group)
def group() -> None:
    """The disk that crisp takes."""


@group.command("df")
@click.option("--format", "form", default="table", metavar="json|table|TEMPLATE", help="How each line looks.")
@click.pass_obj
def df(socket_path: str, form: str) -> None:
    """Count images, containers, and what builds keep: their steps, and directories of RUN --mount=type=cache."""
    from imagesvc.references import is_step  # noqa: PLC0415
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    with errors(), Client(socket_path) as client:
        images = client.images.ListImages(cri.ListImagesRequest()).images
        containers = client.runtime.ListContainers(cri.ListContainersRequest()).containers
        stats = client.runtime.ListContainerStats(cri.ListContainerStatsRequest()).stats
        kept = _left(client, dry=True)
    own = [image for image in images if not all(map(is_step, (*image.repo_tags, *image.repo_digests)))]
    rows: list[listing.Row] = [
        {"Type": "Images", "TotalCount": len(own), "Size": sum(image.size for image in own)},
        {
            "Type": "Containers",
            "TotalCount": len(containers),
            "Size": sum(one.writable_layer.used_bytes.value for one in stats),
        },
        {"Type": "Build cache", "TotalCount": kept.images + kept.caches, "Size": kept.bytes},
    ]
    columns = {
        "TYPE": lambda row: row["Type"],
        "TOTAL": lambda row: str(row["TotalCount"]),
        "SIZE": lambda row: size(row["Size"]),
    }
    listing.show(rows, columns, form, quiet=False)


@group.command("prune")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@click.pass_obj
def prune(socket_path: str, force: bool) -> None:
    """Remove what builds keep to be quick the next time, but what a build uses just now.

    Images with names of their own, containers and pods stay: they are removed by `crisp rmi`, `crisp rm` and `crisp pod rm`.
    """
    if not force:
        click.confirm("Remove the steps and directories that builds keep?", abort=True)
    with errors(), Client(socket_path) as client:
        gone = _left(client, dry=False)
    click.echo(f"{gone.images} steps and {gone.caches} directories removed, {size(gone.bytes)}")


def _left(client: Client, *, dry: bool) -> admin.PruneBuildCacheResponse:
    from proto import admin_pb2 as admin  # noqa: PLC0415

    left: admin.PruneBuildCacheResponse = client.admin.PruneBuildCache(admin.PruneBuildCacheRequest(dry=dry))
    return left
