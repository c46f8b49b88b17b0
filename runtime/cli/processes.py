"""`crisp top` and `crisp port`: a container's processes, and a pod's ports on the node."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress

import click

from runtime.cli import completion
from runtime.cli.lifecycle import first_process
from runtime.cli.lookup import Node
from runtime.cli.output import errors, fail, table
from runtime.cli.ps import network
from runtime.client import Client

HEADER = ("UID", "PID", "PPID", "STATE", "TIME", "COMMAND")


@click.command("top")
@click.argument("container", shell_complete=completion.containers)
@click.pass_obj
def top(socket_path: str, container: str) -> None:
    """List a container's processes, with their pids on this node. What containers use is shown by `crisp stats`."""
    with errors(), Client(socket_path) as client:
        first = first_process(client, Node(client).container(container).id)
        table(HEADER, [row for pid in _group(first) if (row := _process(pid)) is not None])


def _group(first: int) -> list[int]:
    """The processes of the control group of a process, and of those below it."""
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        places = [line.split() for line in mounts]
    with open(f"/proc/{first}/cgroup", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    for place in places:
        kind, options = place[place.index("-") + 1], place[-1].split(",")
        for _, controllers, path in lines:
            named = kind == "cgroup2" and not controllers
            if named or (kind == "cgroup" and controllers and set(controllers.split(",")) <= set(options)):
                pids = list(_pids(place[4] + path))
                if first in pids:
                    return sorted(pids)
    return [first]


def _pids(directory: str) -> list[int]:
    found: list[int] = []
    for path, _, names in os.walk(directory):
        if "cgroup.procs" in names:
            with suppress(OSError), open(os.path.join(path, "cgroup.procs"), encoding="ascii") as file:
                found += map(int, file)
    return found


def _process(pid: int) -> tuple[str, ...] | None:
    """One row; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").split(b"\0")
        owner = os.stat(f"/proc/{pid}").st_uid
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    seconds = (int(fields[11]) + int(fields[12])) // os.sysconf("SC_CLK_TCK")
    command = b" ".join(words).decode(errors="replace") if words != [b""] else f"[{name}]"
    spent = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return (_user(owner), str(pid), fields[1], fields[0], spent, command)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@click.command("port")
@click.argument("container", shell_complete=completion.containers)
@click.pass_obj
def port(socket_path: str, container: str) -> None:
    """List the ports of the node that lead to a container's pod."""
    with errors(), Client(socket_path) as client:
        _, ports = network(client, Node(client).container(container).pod_sandbox_id)
    if not ports:
        fail(f"no port of this node leads to {container}")
    for mapping in ports.split(", "):
        host, _, inner = mapping.partition("->")
        click.echo(f"{inner} -> {host}")
