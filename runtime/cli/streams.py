"""`crisp exec`, `crisp attach`, `crisp port-forward`: through the same URLs that crictl gets."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

import click

from runtime.cli import completion
from runtime.cli.endings import status_of
from runtime.cli.exit_codes import PassesOn
from runtime.cli.lifecycle import first_process, sandbox_config
from runtime.cli.lookup import Node
from runtime.cli.output import commands_failure, errors, fail, need_terminal
from runtime.cli.signals import Signals
from runtime.client import Client
from runtime.host import followers
from runtime.streaming.detach_keys import DEFAULT, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from proto import admin_pb2 as admin

LOOK_SECONDS: Final = 0.01
END_LOOK_SECONDS: Final = 0.1
OURS: Final[dict[str, Any]] = {"stdin": 0, "stdout": 1, "stderr": 2}


@click.command("exec", cls=PassesOn, context_settings={"allow_interspersed_args": False})
@click.argument("container", shell_complete=completion.containers)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--stdin", is_flag=True, help="Pass our input on.")
@click.option("-t", "--tty", is_flag=True, help="Give the process a terminal.")
@click.option("-e", "--env", "environment", multiple=True, metavar="NAME=VALUE", help="Variable; repeatable.")
@click.option("-w", "--workdir", default="", help="Working directory in place of the container's.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Names of the container's, or numbers.")
@click.option("--detach-keys", default=DEFAULT, show_default=True, metavar="KEYS", help="Leave with them what -it runs.")
@click.option("-d", "--detach", is_flag=True, help="Start it, and do not wait for it; nobody sees what it writes.")
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
    detach_keys: str,
    detach: bool,
) -> None:
    """Run a command in a running container; ends with its exit code: 126 if it cannot be run, 127 if it is not there."""
    from proto import admin_pb2 as admin  # noqa: PLC0415  --help needs no protobuf
    from runtime.streaming.client import DetachedError, run_command  # noqa: PLC0415
    from runtime.streaming.remote_command import StreamOptions  # noqa: PLC0415

    command = command[1:] if command[:1] == ("--",) else command  # as kubectl and crictl have it
    if not command:
        fail("name the command to run", 2)
    need_terminal(stdin=stdin and not detach, tty=tty)
    with Signals().told(), errors(), Client(socket_path) as client:
        keys = parse(detach_keys) if tty else b""
        found = Node(client).container(container).id
        request = admin.ExecRequest(
            container_id=found,
            cmd=command,
            tty=tty,
            stdin=stdin,
            env=environment,
            working_dir=workdir,
            detach=detach,
        )
        if user:
            request.user.CopyFrom(_user(client, found, user))
        with commands_failure():
            url = client.admin.Exec(request).url
        if detach:
            if url:  # which nobody goes to
                fail("the daemon is of an older crisp, and runs no command without somebody who waits for it: restart it")
            return
        trusted, options = _certificate(client), StreamOptions(tty, stdin, True, not tty)
        ends = {**OURS, "on_detach": lambda: client.admin.LeaveExec(admin.LeaveExecRequest(url=url))}
        with commands_failure():
            try:
                code = asyncio.run(run_command(url, options, certificate=trusted, detach_keys=keys, **ends))
            except DetachedError:
                code = 0
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
@click.option("--stdin/--no-stdin", "-i", default=None, help="Pass our input on: so it is where the container takes any.")
@click.option("--detach-keys", default=DEFAULT, show_default=True, metavar="KEYS", help="Leave a terminal with them.")
@click.pass_obj
def attach(socket_path: str, container: str, stdin: bool | None, detach_keys: str) -> None:
    """Join a running container: its output from now on, and our input if it takes any, until it ends; with its exit code."""
    from runtime.streaming.client import DetachedError  # noqa: PLC0415

    with Signals().told(), errors(), Client(socket_path) as client:
        meant = Node(client).container(container)
        found = meant.id
        followers.follow(sandbox_config(client, meant.pod_sandbox_id).log_directory)
        info = _info(client, found)
        tty, wanted = bool(info["terminal"]), info["config"].get("stdin", False) if stdin is None else stdin
        try:
            Joint(client, found, stdin=wanted, tty=tty, keys=parse(detach_keys) if tty else b"").join()
            code = _end(client, found)
        except DetachedError:
            code = 0
    raise SystemExit(code)


def _end(client: Client, container: str) -> int:
    """Wait until the container has ended: it may go on without its output. Its exit code."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    while (status := status_of(client, container)).state == cri.CONTAINER_RUNNING:
        time.sleep(END_LOOK_SECONDS)
    return int(status.exit_code)


class Joint:
    """Our own streams and a container's; they may be joined again, when a daemon was away."""

    def __init__(self, client: Client, container: str, *, stdin: bool, tty: bool, keys: bytes) -> None:
        from runtime.streaming.client import Input  # noqa: PLC0415

        self._client = client
        self._container = container
        self._stdin = stdin
        self._tty = tty
        self._keys = keys
        self._source = Input(OURS["stdin"])
        self.written: dict[int, int] = {}
        """Bytes that each of our descriptors got."""

    def join(self, begin: Callable[[], None] = lambda: None, look: Callable[[], None] = lambda: None) -> int:
        """Until the container ends; its exit code. `begin` is called once they are joined, and `look` now and then: what it
        raises ends it, where `written` is right. Raises what run_command does."""
        from proto import api_pb2 as cri  # noqa: PLC0415
        from runtime.streaming.client import run_command  # noqa: PLC0415
        from runtime.streaming.remote_command import StreamOptions  # noqa: PLC0415

        before = self._attached()
        request = cri.AttachRequest(
            container_id=self._container, tty=self._tty, stdin=self._stdin, stdout=True, stderr=not self._tty
        )
        url, options = self._client.runtime.Attach(request).url, StreamOptions(self._tty, self._stdin, True, not self._tty)
        trusted = _certificate(self._client)
        ends: dict[str, Any] = {**OURS, "stdin": self._source, "written": self.written, "detach_keys": self._keys}

        async def joined() -> int:
            work = asyncio.create_task(run_command(url, options, certificate=trusted, **ends))
            try:
                while not work.done() and self._attached() <= before:
                    await asyncio.wait((work,), timeout=LOOK_SECONDS)
                if not work.done():
                    await asyncio.to_thread(begin)
                while not work.done():
                    await asyncio.wait((work,), timeout=LOOK_SECONDS)
                    look()
                return await work
            finally:
                work.cancel()

        return asyncio.run(joined())

    def _attached(self) -> int:
        return int(_info(self._client, self._container)["attached"])


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
