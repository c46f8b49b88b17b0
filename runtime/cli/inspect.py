"""`crisp inspect`: all that is known of a container, a pod or an image."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from runtime.cli import completion, listing
from runtime.cli.lookup import Node
from runtime.cli.output import errors, fail
from runtime.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = ("container", "pod", "image")


@click.command("inspect")
@click.argument("names", nargs=-1, required=True, shell_complete=completion.containers)
@click.option("--type", "kind", type=click.Choice(KINDS), help="Of what kind they are, where a name is of several.")
@click.option("--format", "-f", "form", default="", metavar="TEMPLATE", help="For example {{.status.state}}.")
@click.pass_obj
def command(socket_path: str, names: tuple[str, ...], kind: str | None, form: str) -> None:
    """Show containers, pods and images as JSON: a list with `status`, and `info` as `crictl inspect` shows it."""
    show(socket_path, names, (kind,) if kind else KINDS, form)


def show(socket_path: str, names: tuple[str, ...], kinds: tuple[str, ...], form: str) -> None:
    """Print each, looked for among these kinds in their order."""
    template = listing.parse(form) if form else None
    found, missing = [], []
    with errors(), Client(socket_path) as client:
        node = Node(client)
        for name in names:
            for kind in kinds:
                shown = _LOOKS[kind](client, node, name)
                if shown is not None:
                    found.append(shown)
                    break
            else:
                missing.append(name)
    if template is not None:
        for each in found:
            click.echo(template.fill(each))
    else:
        click.echo(json.dumps(found, indent=2))
    if missing:
        fail(f"no such {' or '.join(kinds)}: {', '.join(missing)}")


def _container(client: Client, node: Node, name: str) -> dict[str, Any] | None:
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    if not node.is_container(name):
        return None
    request = cri.ContainerStatusRequest(container_id=node.container(name).id, verbose=True)
    return _shown(client.runtime.ContainerStatus(request))


def _pod(client: Client, node: Node, name: str) -> dict[str, Any] | None:
    from proto import api_pb2 as cri  # noqa: PLC0415

    if not node.is_pod(name):
        return None
    request = cri.PodSandboxStatusRequest(pod_sandbox_id=node.pod(name).id, verbose=True)
    return _shown(client.runtime.PodSandboxStatus(request))


def _image(client: Client, _node: Node, name: str) -> dict[str, Any] | None:
    from proto import api_pb2 as cri  # noqa: PLC0415

    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name), verbose=True)
    reply = client.images.ImageStatus(request)
    return _shown(reply) if reply.HasField("image") else None


_LOOKS: dict[str, Callable[[Client, Node, str], dict[str, Any] | None]] = {
    "container": _container,
    "pod": _pod,
    "image": _image,
}


def _shown(reply: Any) -> dict[str, Any]:
    """A reply of the CRI with the JSON texts of its `info` as what they say."""
    from google.protobuf import json_format  # noqa: PLC0415

    shown: dict[str, Any] = json_format.MessageToDict(reply, always_print_fields_with_no_presence=True)
    info = decoded(shown.pop("info", {}))
    inner = info.pop("info", {})
    return {**shown, "info": {**info, **inner} if isinstance(inner, dict) else info}


def decoded(info: dict[str, str]) -> dict[str, Any]:
    """The `info` of a verbose reply: its JSON texts as what they say, other texts as they are."""
    found: dict[str, Any] = dict(info)
    for key, text in info.items():
        with suppress(ValueError):
            found[key] = json.loads(text)
    return found
