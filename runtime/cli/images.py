"""`crisp image`: what lies on this node."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proto.errors import CrispError
from runtime.cli import build_output, completion, inspect, listing
from runtime.cli.docker_words import Group, unneeded
from runtime.cli.lookup import Node
from runtime.cli.output import age, clean, errors, fail, short, show, size
from runtime.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proto import admin_pb2 as admin

FILTERS: listing.Filters = {
    "id": lambda row, value: row["ID"].startswith(value),
    "reference": lambda row, value: any(fnmatch(name, value) for name in _spellings(row)),
    "dangling": lambda row, value: (not row["Names"]) == (value == "true"),
}


def _spellings(row: listing.Row) -> list[str]:
    """An image's names, with and without their tags and docker's registry, as a person may mean them."""
    names = [*row["Names"], *row["Digests"]]
    names += [name.removeprefix("docker.io/") for name in names] + [
        name.removeprefix("docker.io/library/") for name in names
    ]
    return [*names, *(name.rpartition("@" if "@" in name else ":")[0] for name in names)]


@click.group("image", cls=Group)
def group() -> None:
    """Images: list, fetch, move, make, remove."""


@group.command("ls")
@click.argument("reference", default="", shell_complete=completion.images)
@click.option("-a", "--all", "everything", is_flag=True, help="Those after a build's steps too.")
@listing.options()
@click.pass_obj
def ls(
    socket_path: str, reference: str, everything: bool, quiet: bool, form: str, no_trunc: bool, wanted: tuple[str, ...]
) -> None:
    """List images; with a REFERENCE such as app or app:1 those of that name alone."""
    from imagesvc.references import is_step  # noqa: PLC0415
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    with errors(), Client(socket_path) as client:
        images = client.images.ListImages(cri.ListImagesRequest()).images
    rows: list[listing.Row] = [
        {
            "ID": image.id,
            "Names": [name for name in image.repo_tags if everything or not is_step(name)],
            "Digests": [*image.repo_digests],
            "Size": image.size,
            "Pinned": image.pinned,
            "User": image.username or (str(image.uid.value) if image.HasField("uid") else ""),
        }
        for image in images
        if everything or not image.repo_tags or not all(map(is_step, image.repo_tags))
    ]
    columns = {
        "IMAGE ID": lambda row: row["ID"] if no_trunc else short(row["ID"]),
        "SIZE": lambda row: size(row["Size"]),
        "NAME": lambda row: row["Name"],
    }
    found = listing.chosen(rows, (*wanted, *([f"reference={reference}"] if reference else [])), FILTERS)
    if form == "table" and not quiet:  # a line for each name
        found = [{**row, "Name": name} for row in found for name in row["Names"] or row["Digests"] or ["(none)"]]
    listing.show(found, columns, form, quiet=quiet)


@group.command("inspect")
@click.argument("references", nargs=-1, required=True, shell_complete=completion.images)
@click.option("--format", "-f", "form", default="", metavar="TEMPLATE", help="For example {{.image.id}}.")
@click.pass_obj
def inspect_(socket_path: str, references: tuple[str, ...], form: str) -> None:
    """Show images as JSON."""
    inspect.show(socket_path, references, ("image",), form)


@group.command("history")
@click.argument("reference", shell_complete=completion.images)
@listing.options(filters=False)
@click.pass_obj
def history(socket_path: str, reference: str, quiet: bool, form: str, no_trunc: bool) -> None:
    """List how an image was made, the newest step first; the size of a layer is that in its registry."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    with errors(), Client(socket_path) as client:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=reference), verbose=True)
        reply = client.images.ImageStatus(request)
        if not reply.HasField("image"):
            fail(f"no such image: {reference}")
        rows = _steps(reply.image.id, json.loads(reply.info["info"]))
    now, width = time.time_ns(), None if no_trunc else 45
    columns = {
        "IMAGE": lambda row: row["ID"] if no_trunc else short(row["ID"]),
        "CREATED": lambda row: _ago(row["CreatedAt"], now),
        "CREATED BY": lambda row: row["CreatedBy"][:width],
        "SIZE": lambda row: size(row["Size"]),
        "COMMENT": lambda row: row["Comment"],
    }
    listing.show(rows, columns, form, quiet=quiet)


def _steps(image: str, known: dict[str, Any]) -> list[listing.Row]:
    """One for each line of the history, and for each layer that has none; the last made the image."""
    layers = iter(known["layers"])
    steps = []
    for line in known["imageSpec"]["history"]:
        layer: dict[str, Any] = {} if line.get("empty_layer") else next(layers, {})
        steps.append((line, layer))
    steps += [({}, layer) for layer in layers]
    rows: list[listing.Row] = [
        {
            "ID": "<missing>",
            "CreatedAt": str(line.get("created", "")),
            "CreatedBy": str(line.get("created_by", "")),
            "Size": layer.get("size", 0),
            "Layer": layer.get("diff_id", ""),
            "Comment": str(line.get("comment", "")),
        }
        for line, layer in reversed(steps or [({}, {})])
    ]
    return [{**rows[0], "ID": image}, *rows[1:]]


def _ago(text: str, now: int) -> str:
    """How long before now a time of RFC 3339 was; nothing for what is none."""
    try:
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
        return f"{age(int(moment.timestamp() * 1e9), now)} ago"
    except (ValueError, OverflowError):
        return ""


_quiet = click.option("-q", "--quiet", is_flag=True, help="Say nothing while it goes on.")


@group.command("pull")
@click.argument("reference")
@click.option("--user", help="NAME:PASSWORD for the registry; NAME alone asks for the password.")
@_quiet
@click.pass_obj
def pull(socket_path: str, reference: str, user: str | None, quiet: bool) -> None:
    """Fetch an image from its registry."""
    from proto import admin_pb2 as admin  # noqa: PLC0415

    request = admin.PullImageRequest(reference=reference)
    _fill_credentials(request, user)
    with errors(), Client(socket_path) as client:
        for image_id in show(client.admin.PullImage(request), quiet=quiet):
            click.echo(image_id)


@group.command("import")
@click.argument("archive", type=click.Path(exists=True, allow_dash=True, path_type=Path))
@click.pass_obj
def import_(socket_path: str, archive: Path) -> None:
    """Read an OCI or docker archive (a tar file, compressed or not); - is the standard input."""
    _import(socket_path, archive)


def _import(socket_path: str, archive: Path) -> None:
    from proto import admin_pb2 as admin  # noqa: PLC0415

    with errors(), Client(socket_path) as client, _spooled(archive) as path:
        reply = client.admin.ImportImages(admin.ImportImagesRequest(path=str(path.absolute())))
        for image_id in reply.image_ids:
            click.echo(image_id)


@contextmanager
def _spooled(archive: Path) -> Iterator[Path]:
    """The archive as a file: the daemon reads it more than once."""
    if str(archive) != "-":
        yield archive
        return
    with tempfile.NamedTemporaryFile(prefix="crisp-import-", dir="/var/tmp") as file:
        with open(0, "rb", closefd=False) as given:  # not `sys.stdin`, which there is none of where it was closed
            shutil.copyfileobj(given, file, 1 << 20)
        file.flush()
        yield Path(file.name)


@group.command("tag")
@click.argument("reference", shell_complete=completion.images)
@click.argument("name")
@click.pass_obj
def tag(socket_path: str, reference: str, name: str) -> None:
    """Give an image one more NAME; another image that has it loses it."""
    from proto import admin_pb2 as admin  # noqa: PLC0415

    with errors(), Client(socket_path) as client:
        click.echo(client.admin.TagImage(admin.TagImageRequest(reference=reference, name=name)).image_id)


@group.command("export")
@click.argument("archive", type=click.Path(allow_dash=True, path_type=Path))
@click.argument("references", nargs=-1, required=True, shell_complete=completion.images)
@click.option("--format", "kind", type=click.Choice(["oci", "docker"]), default="oci", show_default=True)
@click.pass_obj
def export(socket_path: str, archive: Path, references: tuple[str, ...], kind: str) -> None:
    """Write images to an archive."""
    _export(socket_path, archive, references, kind)


def _export(socket_path: str, archive: Path, references: tuple[str, ...], kind: str) -> None:
    from runtime.build.session import Session  # noqa: PLC0415

    if str(archive) == "-" and os.isatty(1):
        fail("an archive is not for a terminal: name a file with -o", 2)
    with errors(), Client(socket_path) as client, Session(client, None) as session:
        build_output.archive(build_output.Output(kind, str(archive)), session, references)


@group.command("add-rootfs")
@click.argument("name")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.pass_obj
def add_rootfs(socket_path: str, name: str, directory: Path) -> None:
    """Make an image of a plain directory, without copying it."""
    from proto import admin_pb2 as admin  # noqa: PLC0415

    request = admin.AddRootfsRequest(name=name, directory=str(directory.resolve()))
    with errors(), Client(socket_path) as client:
        click.echo(client.admin.AddRootfs(request).image_id)


@group.command("rm")
@click.argument("references", nargs=-1, required=True, shell_complete=completion.images)
@click.option("--force", "-f", is_flag=True, help="All names of an id; what is not there is no failure.")
@unneeded("--no-prune")
@click.pass_obj
def rm(socket_path: str, references: tuple[str, ...], force: bool) -> None:
    """Remove images: a name, and the image with its last one; by its id an image with several names goes with --force.

    One that is not there is an error, and the others are removed all the same.
    """
    from imagesvc.references import is_step  # noqa: PLC0415
    from proto import admin_pb2 as admin  # noqa: PLC0415
    from proto import api_pb2 as cri  # noqa: PLC0415

    missing, kept = [], []
    with errors(), Client(socket_path) as client:
        for reference in references:
            image = cri.ImageSpec(image=reference)
            found = client.images.ImageStatus(cri.ImageStatusRequest(image=image))
            names = [name for name in found.image.repo_tags if not is_step(name)]
            if not found.HasField("image"):
                missing.append(reference)
            elif len(names) < 2 or "@" in reference:
                client.images.RemoveImage(cri.RemoveImageRequest(image=image))
            elif (name := _name(reference)) in names:
                client.admin.UntagImage(admin.UntagImageRequest(name=name))
            elif force:
                client.images.RemoveImage(cri.RemoveImageRequest(image=image))
            else:
                kept.append(f"{reference} has {len(names)} names: {', '.join(names)}")
    if missing and force:
        click.echo(clean(f"crisp: no such image: {', '.join(missing)}"), err=True)
    elif missing:
        fail(f"no such image: {', '.join(missing)}")
    if kept:
        fail(f"{'; '.join(kept)}: name those, or say --force")


def _name(reference: str) -> str:
    """In full; empty for what is none, as an id."""
    from imagesvc.references import parse_reference  # noqa: PLC0415

    try:
        return str(parse_reference(reference))
    except CrispError:
        return ""


@click.command("save")
@click.argument("references", nargs=-1, required=True, shell_complete=completion.images)
@click.option(
    "-o", "--output", default="-", type=click.Path(allow_dash=True, path_type=Path), help="In place of the standard output."
)
@click.option("--format", "kind", type=click.Choice(["oci", "docker"]), default="docker", show_default=True)
@click.pass_obj
def save(socket_path: str, references: tuple[str, ...], output: Path, kind: str) -> None:
    """Write images to an archive, by default to the standard output; as `crisp image export`."""
    _export(socket_path, output, references, kind)


@click.command("load")
@click.option("-i", "--input", "archive", default="-", type=click.Path(exists=True, allow_dash=True, path_type=Path))
@unneeded("-q", "--quiet")
@click.pass_obj
def load(socket_path: str, archive: Path) -> None:
    """Read an archive, by default from the standard input; as `crisp image import`."""
    _import(socket_path, archive)


@group.command("commit")
@click.argument("container", shell_complete=completion.containers)
@click.argument("reference")
@click.option("--entrypoint", help="JSON array of words for the new image's entrypoint.")
@click.option("--cmd", help="JSON array of words for the new image's cmd.")
@click.option("--env", "-e", "environment", multiple=True, metavar="NAME=VALUE", help="Variable of the new image.")
@click.option("--workdir", default="", help="Working directory of the new image.")
@click.option("--user", default="", help="User of the new image.")
@click.pass_obj
def commit(
    socket_path: str,
    container: str,
    reference: str,
    entrypoint: str | None,
    cmd: str | None,
    environment: tuple[str, ...],
    workdir: str,
    user: str,
) -> None:
    """Make an image of what a container has written, on top of its own image."""
    from proto import admin_pb2 as admin  # noqa: PLC0415

    changes = admin.CommitContainerRequest(
        reference=reference,
        entrypoint=_words("--entrypoint", entrypoint),
        cmd=_words("--cmd", cmd),
        env=environment,
        working_dir=workdir,
        user=user,
    )
    with errors(), Client(socket_path) as client:
        changes.container_id = Node(client).container(container).id
        click.echo(client.admin.CommitContainer(changes).image_id)


def _words(option: str, text: str | None) -> list[str]:
    """An option in the form of a Containerfile's exec form."""
    if text is None:
        return []
    try:
        words = json.loads(text)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        fail(f'{option}: not a JSON array of strings, such as ["/bin/sh", "-c"]', 2)
    return words


@group.command("push")
@click.argument("reference", shell_complete=completion.images)
@click.argument("target", default="")
@click.option("--user", help="NAME:PASSWORD for the registry; NAME alone asks for the password.")
@_quiet
@click.pass_obj
def push(socket_path: str, reference: str, target: str, user: str | None, quiet: bool) -> None:
    """Upload an image to its registry, or to TARGET."""
    from proto import admin_pb2 as admin  # noqa: PLC0415

    request = admin.PushImageRequest(reference=reference, target=target)
    _fill_credentials(request, user)
    with errors(), Client(socket_path) as client:
        for digest in show(client.admin.PushImage(request), quiet=quiet):
            click.echo(digest)


def _fill_credentials(request: admin.PullImageRequest | admin.PushImageRequest, user: str | None) -> None:
    if user is None:
        return
    name, colon, password = user.partition(":")
    request.credentials.username = name
    request.credentials.password = password if colon else click.prompt("Password", hide_input=True, err=True)


@group.command("verify")
@click.option("--repair", is_flag=True, help="Drop what is bad; it is fetched again by the next pull.")
@click.pass_obj
def verify(socket_path: str, repair: bool) -> None:
    """Check every blob and layer against its digest; exit code 1 if something is bad."""
    from proto import admin_pb2 as admin  # noqa: PLC0415

    with errors(), Client(socket_path) as client:
        report = client.admin.VerifyImages(admin.VerifyImagesRequest(repair=repair))
    for name, lines in (
        ("blob", report.bad_blobs),
        ("layer", report.bad_layers),
        ("dropped image", report.dropped_images),
        ("in use, not dropped", report.in_use),
    ):
        for line in lines:
            click.echo(f"{name}: {line}")
    click.echo(f"{report.checked} blobs and layers checked, {len(report.bad_blobs) + len(report.bad_layers)} bad")
    raise SystemExit(bool(report.bad_blobs or report.bad_layers))
