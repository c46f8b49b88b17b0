"""`crisp exec`, `crisp attach`, `crisp port-forward`: through the same URLs that crictl gets."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any, Final

import click

from runtime.cli import completion
from runtime.cli.lifecycle import first_process
from runtime.cli.lookup import Node
from runtime.cli.output import commands_failure, errors, fail, without_dashes
from runtime.cli.signals import Signals
from runtime.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from proto import admin_pb2 as admin

LOOK_SECONDS: Final = 0.01
OURS: Final = {"stdin": 0, "stdout": 1, "stderr": 2}


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("container", shell_complete=completion.containers)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--stdin", is_flag=True, help="Pass our input on.")
@click.option("-t", "--tty", is_flag=True, help="Give the process a terminal.")
@click.option("-e", "--env", "environment", multiple=True, metavar="NAME=VALUE", help="Variable; repeatable.")
@click.option("-w", "--workdir", default="", help="Working directory in place of the container's.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Names of the container's, or numbers.")
@click.pass_obj
def exec_(
    socket_path: str,
    container: str,
    command: tuple[str, ...],
    stdin: bool,
    tty: bool,
    environment: tuple[str, ...],
    workdir: str,
    user: str,
) -> None:
    """Run a command in a running container; ends with its exit code: 126 if it cannot be run, 127 if it is not there."""
    from proto import admin_pb2 as admin  # noqa: PLC0415  --help needs no protobuf
    from runtime.streaming.client import run_command  # noqa: PLC0415
    from runtime.streaming.remote_command import StreamOptions  # noqa: PLC0415

    command = without_dashes(command)
    if not command:
        fail("name the command to run", 2)
    with Signals().told(), errors(), Client(socket_path) as client:
        found = Node(client).container(container).id
        request = admin.ExecRequest(
            container_id=found, cmd=command, tty=tty, stdin=stdin, env=environment, working_dir=workdir
        )
        if user:
            request.user.CopyFrom(_user(client, found, user))
        url = client.admin.Exec(request).url
        trusted, options = _certificate(client), StreamOptions(tty, stdin, True, not tty)
        with commands_failure():
            code = asyncio.run(run_command(url, options, certificate=trusted, **OURS))
    raise SystemExit(code)


def _user(client: Client, container: str, name: str) -> admin.User:
    """Who is called so in the container's own /etc/passwd and /etc/group."""
    from proto import admin_pb2 as admin  # noqa: PLC0415
    from shim import user_lookup  # noqa: PLC0415

    root = os.open(f"/proc/{first_process(client, container)}/root", os.O_PATH | os.O_DIRECTORY)
    try:
        found = user_lookup.resolve(root, name, None, ())
    finally:
        os.close(root)
    return admin.User(uid=found.uid, gid=found.gid, groups=found.groups)


@click.command("attach")
@click.argument("container", shell_complete=completion.containers)
@click.option("-i", "--stdin", is_flag=True, help="Pass our input on.")
@click.pass_obj
def attach(socket_path: str, container: str, stdin: bool) -> None:
    """Show a running container's output from now on, until it ends."""
    with Signals().told(), errors(), Client(socket_path) as client:
        found = Node(client).container(container).id
        code = join(client, found, stdin=stdin, tty=_has_terminal(client, found))
    raise SystemExit(code)


def join(client: Client, container: str, *, stdin: bool, tty: bool, begin: Callable[[], None] = lambda: None) -> int:
    """Join our own streams with a container's until it ends; its exit code. `begin` is called once they are joined."""
    from proto import api_pb2 as cri  # noqa: PLC0415
    from runtime.streaming.client import run_command  # noqa: PLC0415
    from runtime.streaming.remote_command import StreamOptions  # noqa: PLC0415

    before = _attached(client, container)
    request = cri.AttachRequest(container_id=container, tty=tty, stdin=stdin, stdout=True, stderr=not tty)
    url, options = client.runtime.Attach(request).url, StreamOptions(tty, stdin, True, not tty)

    async def joined() -> int:
        work = asyncio.create_task(run_command(url, options, certificate=_certificate(client), **OURS))
        try:
            while not work.done() and _attached(client, container) <= before:
                await asyncio.wait((work,), timeout=LOOK_SECONDS)
            if not work.done():
                await asyncio.to_thread(begin)
            return await work
        finally:
            work.cancel()

    return asyncio.run(joined())


def _attached(client: Client, container: str) -> int:
    return int(_info(client, container)["attached"])


def _has_terminal(client: Client, container: str) -> bool:
    return bool(_info(client, container)["terminal"])


def _info(client: Client, container: str) -> dict[str, Any]:
    from proto import api_pb2 as cri  # noqa: PLC0415

    reply = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container, verbose=True))
    info: dict[str, Any] = json.loads(reply.info["info"])
    return info


@click.command("port-forward")
@click.argument("pod", shell_complete=completion.pods)
@click.argument("ports", nargs=-1, required=True)
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on here.")
@click.pass_obj
def port_forward(socket_path: str, pod: str, ports: tuple[str, ...], address: str) -> None:
    """Reach ports of a pod from here: PORT, or LOCAL:PORT; until Ctrl-C."""
    from proto import api_pb2 as cri  # noqa: PLC0415
    from runtime.streaming.client import forward_ports  # noqa: PLC0415

    pairs = [_ports(text) for text in ports]
    with errors(), Client(socket_path) as client:
        found = Node(client).pod(pod).id
        request = cri.PortForwardRequest(pod_sandbox_id=found, port=[remote for _, remote in pairs])
        url, trusted = client.runtime.PortForward(request).url, _certificate(client)

        def listening(local: int, remote: int) -> None:
            click.echo(f"{address}:{local} -> {remote}")

        try:
            asyncio.run(forward_ports(url, pairs, address=address, certificate=trusted, on_listening=listening))
        except KeyboardInterrupt:
            return


def _certificate(client: Client) -> str:
    """The one that the daemon shows to streaming clients, as it says on its own socket; empty without TLS."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    info = client.runtime.Status(cri.StatusRequest(verbose=True)).info
    return str(info.get("streamingCertificate", ""))


def _ports(text: str) -> tuple[int, int]:
    local, colon, remote = text.rpartition(":")
    try:
        pair = (int(local) if colon else int(remote)), int(remote)
    except ValueError:
        fail(f"{text!r} is neither PORT nor LOCAL:PORT", 2)
    if pair[0] not in range(65536) or pair[1] not in range(1, 65536):
        fail(f"{text!r}: a port is a number from 1 to 65535; here 0 stands for any that is free", 2)
    return pair
