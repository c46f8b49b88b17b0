"""`crisp build`: an image from a Containerfile, made by running containers; runtime/build does it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from runtime.cli import build_output, build_progress
from runtime.cli.docker_words import unneeded
from runtime.cli.output import errors, fail
from runtime.cli.run_options import amount, host
from runtime.cli.signals import Signals
from runtime.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runtime.build.copying import Copier
    from runtime.build.session import Session
    from runtime.build.wishes import Wishes
    from runtime.cli.build_terminal import Picture


@click.command("build", context_settings={"help_option_names": ["--help", "-h"]})
@click.argument("context")
@click.option("-t", "--tag", "tags", multiple=True, metavar="NAME[:TAG]", help="Name of the image; repeatable.")
@click.option("-f", "--file", "containerfile", help="The Containerfile, - for the standard input.")
@click.option("--target", default="", metavar="STAGE", help="The stage to build; the last one if absent.")
@click.option("--build-arg", "arguments", multiple=True, metavar="NAME[=VALUE]", help="An ARG; without a value, ours.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label of the image.")
@click.option(
    "--secret", "secrets", multiple=True, metavar="id=NAME[,src=FILE|,env=NAME]", help="For RUN --mount=type=secret."
)
@click.option(
    "--ssh", "agents", multiple=True, metavar="default|ID[=SOCKET]", help="An SSH agent, for RUN --mount=type=ssh."
)
@click.option("--no-cache", is_flag=True, help="Do every step anew.")
@click.option("--squash", is_flag=True, help="One layer for all that is new above the base image.")
@click.option("--pull", "always", is_flag=True, help="Ask registries for base images that are here too.")
@click.option("--platform", default="", metavar="OS/ARCH", help="What the image is for; it has to be this node's.")
@click.option(
    "--network",
    type=click.Choice(["default", "none", "host"]),
    default="default",
    help="Of RUN: a pod's, none, or the node's.",
)
@click.option("-m", "--memory", default="", metavar="SIZE", help="Limit of each RUN, such as 512M.")
@click.option(
    "--cpus", type=click.FloatRange(0, 1 << 20), default=0, metavar="NUMBER", help="Processors that each RUN may use."
)
@click.option("--shm-size", default="", metavar="SIZE", help="Of /dev/shm of each RUN, such as 256M.")
@click.option("--ulimit", "ulimits", multiple=True, metavar="NAME=SOFT[:HARD]", help="A resource limit of each RUN.")
@click.option("--add-host", "hosts", multiple=True, metavar="NAME:ADDRESS", help="A line for /etc/hosts of each RUN.")
@click.option("--allow", "allowed", multiple=True, type=click.Choice(["network.host"]), help="What RUN may ask for.")
@click.option("-o", "--output", metavar="type=oci|docker|tar|local,dest=PLACE", help="An archive, or files.")
@click.option("--push", is_flag=True, help="Upload it under its names when it is done.")
@click.option("--iidfile", type=click.Path(dir_okay=False), help="A file that gets the image's id.")
@click.option("-q", "--quiet", is_flag=True, help="Print the image's id, and what has failed.")
@click.option("--progress", type=click.Choice(build_progress.FORMS), default="auto", help="How to show what goes on.")
@unneeded("--rm")
@unneeded("--force-rm")
@unneeded("--load")
@click.pass_obj
def command(
    socket_path: str,
    /,
    context: str,
    tags: tuple[str, ...],
    containerfile: str | None,
    no_cache: bool,
    squash: bool,
    always: bool,
    output: str | None,
    push: bool,
    iidfile: str | None,
    quiet: bool,
    progress: str,
    **wanted: object,
) -> None:
    """Build an image from a Containerfile (or Dockerfile) and a directory of files, and print its id.

    \b
    crisp build -t localhost/app .
    crisp build -f app.Containerfile --build-arg VERSION=3 DIR
    tar c . | crisp build -

    CONTEXT is a directory, or - for a tar archive or a Containerfile on the standard input. What RUN runs are containers of
    this node, which no kubelet sees. Steps are taken from builds before as long as they and their files are the same.
    """
    from imagesvc.references import parse_reference  # noqa: PLC0415
    from proto import admin_pb2 as admin  # noqa: PLC0415  --help needs no protobuf
    from runtime.build.copying import Copier  # noqa: PLC0415
    from runtime.build.session import Session  # noqa: PLC0415

    wanted_output = build_output.parse(output) if output is not None else None
    if os.geteuid():
        fail("crisp build mounts trees and makes files of any owner: run it as root", 2)
    with errors(2):
        for tag in tags:
            if parse_reference(tag).digest:
                fail(f"--tag {tag}: a digest is no name for what is only to be made", 2)
    if push and not tags:
        fail("--push needs a name: give one by --tag", 2)
    with Signals().told() as signals, errors():
        wishes = _wishes(no_cache=no_cache, squash=squash, **wanted)  # type: ignore[arg-type]
        epoch = _epoch(wishes.arguments)
        showing = build_progress.shown(build_progress.QUIET if quiet else progress, signals)
        with (
            showing as shown,
            Copier() as copier,
            Client(socket_path) as client,
            Session(client, epoch) as session,
        ):
            pull = _puller(session, shown, always=always)
            image_id = _build(session, copier, context, containerfile, wishes, shown, pull)
            for tag in tags:
                client.admin.TagImage(admin.TagImageRequest(reference=image_id, name=tag))
            if wanted_output is not None:
                build_output.write(wanted_output, session, copier, image_id, tags)
            for tag in tags if push else ():
                number = shown.begin(f"push {tag}")
                for step in client.admin.PushImage(admin.PushImageRequest(reference=tag)):
                    shown.fetched(number, step)
                shown.end(number, "done")
        if iidfile:
            with open(iidfile, "w", encoding="ascii") as file:
                file.write(image_id)
    if wanted_output is None or not wanted_output.is_stream:
        click.echo(image_id)


def _build(
    session: Session,
    copier: Copier,
    context: str,
    containerfile: str | None,
    wishes: Wishes,
    shown: build_progress.Shown | Picture,
    pull: Callable[[str, int], str],
) -> str:
    from imagesvc.containerfile.parser import parse  # noqa: PLC0415
    from runtime.build.context import open_context  # noqa: PLC0415
    from runtime.build.executor import Build  # noqa: PLC0415

    with open(0, "rb", closefd=False) as given:  # not `sys.stdin`, which there is none of where it was closed
        opened = open_context(context, containerfile, given, session.scratch)
    return Build(session, copier, opened, parse(opened.text, opened.name), wishes, shown, pull).run()


def _puller(session: Session, shown: build_progress.Shown | Picture, *, always: bool) -> Callable[[str, int], str]:
    from proto import api_pb2 as cri  # noqa: PLC0415

    def pull(name: str, number: int) -> str:
        found = session.client.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=name)))
        if found.HasField("image") and not always:
            return str(found.image.id)
        for step in session.fetched(name):
            shown.fetched(number, step)
        return str(step.image_ids[0])

    return pull


def _wishes(
    *,
    target: str,
    arguments: Sequence[str],
    labels: Sequence[str],
    secrets: Sequence[str],
    agents: Sequence[str],
    no_cache: bool,
    squash: bool,
    platform: str,
    network: str,
    memory: str,
    cpus: float,
    shm_size: str,
    ulimits: tuple[str, ...],
    hosts: Sequence[str],
    allowed: Sequence[str],
) -> Wishes:
    from imagesvc.containerfile.scopes import Platforms  # noqa: PLC0415
    from imagesvc.platforms import host_platform, parse_platform  # noqa: PLC0415
    from runtime.build.wishes import Conditions, Wishes  # noqa: PLC0415

    given: dict[str, str] = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        if not name:
            fail(f"--build-arg {text}: not of the form NAME=VALUE", 2)
        if equals or name in os.environ:
            given[name] = value if equals else os.environ[name]
    pairs = dict(text.partition("=")[::2] for text in labels)
    if "" in pairs:
        fail("--label: not of the form NAME=VALUE", 2)
    return Wishes(
        platforms=Platforms(host_platform(), parse_platform(platform) if platform else host_platform()),
        arguments=given,
        target=target,
        labels=pairs,
        no_cache=no_cache,
        squash=squash,
        network=network,
        allow_host_network="network.host" in allowed or network == "host",
        conditions=Conditions(
            memory=amount("--memory", memory) if memory else 0,
            cpus=cpus,
            shm_size=amount("--shm-size", shm_size) if shm_size else 0,
            hosts=tuple(map(host, hosts)),
            ulimits=ulimits,
        ),
        secrets=_secrets(secrets),
        agents=_agents(agents),
    )


def _secrets(texts: Sequence[str]) -> Mapping[str, bytes]:
    found = {}
    for text in texts:
        named = dict(word.partition("=")[::2] for word in text.split(","))
        name, path = named.pop("id", ""), named.pop("src", "") or named.pop("source", "")
        kind, variable = named.pop("type", ""), named.pop("env", "")
        if kind == "env" and not variable:
            path, variable = "", path
        if not name or named or kind not in ("", "file", "env") or (path and variable):
            fail(f"--secret {text}: not of the form id=NAME,src=FILE or id=NAME,env=NAME", 2)
        if not path and (variable or name in os.environ):
            if (variable or name) not in os.environ:
                fail(f"--secret {text}: there is no variable {variable}", 2)
            found[name] = os.fsencode(os.environ[variable or name])
            continue
        with open(path or name, "rb") as file:
            found[name] = file.read()
    return found


def _agents(texts: Sequence[str]) -> Mapping[str, str]:
    found = {}
    for text in texts:
        name, _, path = text.partition("=")
        path = path or os.environ.get("SSH_AUTH_SOCK", "")
        if not path:
            fail(f"--ssh {text}: no agent runs: SSH_AUTH_SOCK is not set", 2)
        if os.path.isfile(path):
            fail(f"--ssh {text}: {path} is a file; add the key to an agent, and name that", 2)
        found[name] = os.path.realpath(path)
    return found


def _epoch(arguments: Mapping[str, str]) -> int | None:
    """SOURCE_DATE_EPOCH of reproducible-builds.org: as an argument, or ours."""
    text = arguments.get("SOURCE_DATE_EPOCH", os.environ.get("SOURCE_DATE_EPOCH", ""))
    if text and not text.isdecimal():
        fail(f"SOURCE_DATE_EPOCH {text}: not a number of seconds", 2)
    return int(text) if text else None
