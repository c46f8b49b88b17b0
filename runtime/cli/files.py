"""`crisp cp` and `crisp diff`: a container's files."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import click

from kernel import trees
from runtime.cli import completion
from runtime.cli.container_files import copy_in, copy_out
from runtime.cli.lifecycle import first_process
from runtime.cli.lookup import Node
from runtime.cli.output import errors, fail, say_name
from runtime.client import Client
from runtime.oci.mount_points import mount_points

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


@click.command("cp")
@click.argument("source")
@click.argument("target")
@click.option(
    "--archive",
    "-a",
    is_flag=True,
    help="Owners, devices and set-id bits too; without, files get the owner of where they go.",
)
@click.pass_obj
def cp(socket_path: str, source: str, target: str, archive: bool) -> None:
    """Copy files out of or into a running container.

    \b
    crisp cp web:/etc/nginx .             a directory below what is there
    crisp cp index.html web:/srv/www/
    crisp cp web:/var/log - | tar -t      - is a tar archive on the standard output, or input
    """
    out, into = _place(source), _place(target)
    if (out is None) == (into is None):
        fail("one of SOURCE and TARGET is CONTAINER:PATH, and the other is not", 2)
    with errors(), Client(socket_path) as client:
        node = Node(client)
        if out is not None:
            copy_out(first_process(client, node.container(out[0]).id), out[1], target, archive=archive)
        elif into is not None:
            copy_in(first_process(client, node.container(into[0]).id), source, into[1], archive=archive)


def _place(text: str) -> tuple[str, str] | None:
    """CONTAINER:PATH; None for a path here, which is one that begins like a path or has no colon."""
    if text.startswith(("/", ".", "-")) or ":" not in text:
        return None
    container, _, path = text.partition(":")
    return container, os.path.join("/", path)  # docker's: what is relative begins at the container's root


@click.command("diff")
@click.argument("container", shell_complete=completion.containers)
@click.pass_obj
def diff(socket_path: str, container: str) -> None:
    """List what a container has changed of its image: A added, C changed, D deleted."""
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    with errors(), Client(socket_path) as client:
        found = Node(client).container(container)
        reply = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=found.id, verbose=True))
        info = json.loads(reply.info["info"])
        layer = os.path.join(info["writableLayer"], "upper")
        mounted = mount_points(mount.container_path for mount in reply.status.mounts)
        for kind, path in sorted(changes(layer, set(mounted)), key=lambda change: change[1]):
            say_name(f"{kind} /{path}")


def changes(layer: str, excluded: Collection[str]) -> Iterator[tuple[str, str]]:
    """What a writable layer says: A, C or D, and the path. overlay notes of what it has copied up where it came from."""
    root = os.open(layer, os.O_RDONLY | os.O_DIRECTORY)
    try:
        top = os.readlink(f"/proc/self/fd/{root}")
        for parent, name, status in trees.walk(root):
            directory = os.readlink(f"/proc/self/fd/{parent}")
            path = os.path.relpath(os.path.join(directory, os.fsdecode(name)), top)
            if path in excluded or any(path.startswith(f"{place}/") for place in excluded):
                continue
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                yield "D", path
            else:
                yield "C" if _copied_up(f"/proc/self/fd/{parent}/{os.fsdecode(name)}") else "A", path
    finally:
        os.close(root)


def _copied_up(path: str) -> bool:
    try:
        return "trusted.overlay.origin" in os.listxattr(path, follow_symlinks=False)
    except OSError:
        return False
