"""`crisp completion`: the shells' completion scripts, and the names that they ask this program for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runtime.client import Client

    Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

SECONDS = 2.0
"""A shell that waits longer for a daemon than this has no completion."""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print a completion script; for bash: `source <(crisp completion bash)`."""
    click.echo(script(context.find_root().command, shell))


def script(program: click.Command, shell: str) -> str:
    """The script for one shell; it asks `crisp` itself what can come next."""
    found = get_completion_class(shell)
    assert found is not None
    return found(program, {}, "crisp", "_CRISP_COMPLETE").source()


def _asking(names: Callable[[Client], Iterable[tuple[str, str]]]) -> Completer:
    """A completer that asks the daemon for names and what to show beside each; without a daemon there are none."""

    def complete(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:

        from proto.errors import CrispError  # noqa: PLC0415
        from runtime.client import Client  # noqa: PLC0415

        top = context.find_root()
        try:
            with Client(str(top.obj or top.params["socket_path"])) as client:
                return [CompletionItem(name, help=text) for name, text in names(client) if name.startswith(begun)]
        except CrispError:
            return []

    return complete


def _containers(client: Client) -> Iterable[tuple[str, str]]:
    from proto import api_pb2 as cri  # noqa: PLC0415

    found = client.runtime.ListContainers(cri.ListContainersRequest(), timeout=SECONDS).containers
    return ((container.id[:13], container.metadata.name) for container in found)


def _pods(client: Client) -> Iterable[tuple[str, str]]:
    from proto import api_pb2 as cri  # noqa: PLC0415

    found = client.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=SECONDS).items
    return ((pod.id[:13], f"{pod.metadata.namespace}/{pod.metadata.name}") for pod in found)


def _images(client: Client) -> Iterable[tuple[str, str]]:
    from proto import api_pb2 as cri  # noqa: PLC0415

    found = client.images.ListImages(cri.ListImagesRequest(), timeout=SECONDS).images
    return ((name, image.id) for image in found for name in image.repo_tags)


containers = _asking(_containers)
pods = _asking(_pods)
images = _asking(_images)
