"""`crisp support-bundle`: what somebody who is asked for help wants to see, without what they must not see.

Nothing is taken as it is that can hold a user's secret: of annotations and labels only the names are kept; environments,
arguments, mounts and the output of containers are not in it at all. Passwords for registries are not either: the
configuration names their files. A part that cannot be collected says why in its file; there is always a bundle.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proto.errors import CrispError
from proto.version import VERSION
from runtime.cli.check import CHECKS
from runtime.client import CallError, Client

if TYPE_CHECKING:
    from google.protobuf.message import Message

PROGRAM_SECONDS = 20
LONGEST = 4 << 20  # bytes of one file, from its end
CALL_SECONDS = 10.0

PROGRAMS = {
    "host/uname": ("uname", "-a"),
    "host/os-release": ("cat", "/etc/os-release"),
    "host/disk": ("df", "-h"),
    "host/inodes": ("df", "-i"),
    "host/memory": ("cat", "/proc/meminfo"),
    "host/pressure": ("grep", "-r", "", "/proc/pressure"),
    "host/cgroups": ("cat", "/proc/self/cgroup", "/proc/cgroups"),
    "host/limits": ("sysctl", "kernel.pid_max", "fs.file-nr", "fs.inotify.max_user_instances", "user.max_user_namespaces"),
    "host/processes": ("ps", "-eo", "pid,ppid,state,wchan:24,rss,etimes,comm"),
    "host/kernel-log": ("dmesg", "--time-format=iso"),
    "network/addresses": ("ip", "-details", "address"),
    "network/routes": ("ip", "route", "show", "table", "all"),
    "network/nftables": ("nft", "list", "tables"),
    "versions/crun": ("crun", "--version"),
    "versions/runc": ("runc", "--version"),
    "versions/nft": ("nft", "--version"),
    "log/journal": ("journalctl", "--unit=crisp", "--lines=20000", "--output=short-iso-precise", "--no-pager"),
    "log/unit": ("systemctl", "status", "crisp", "--no-pager", "--lines=0"),
}
"""Name in the bundle, and the program whose output it is."""


@click.command("support-bundle")
@click.argument("target", required=False, type=click.Path(path_type=Path))
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="The daemon's, if not /etc/crisp/crisp.toml.")
@click.pass_obj
def command(socket_path: str, target: Path | None, config_path: Path | None) -> None:
    """Collect state, without secrets, into an archive for those who help."""
    target = target or Path(f"crisp-support-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz")
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in collect(socket_path, config_path):
            member = tarfile.TarInfo(f"crisp-support/{name}.txt")
            member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
            archive.addfile(member, io.BytesIO(data))
    click.echo(str(target))


def collect(socket_path: str, config_path: Path | None) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all parts."""
    yield "version", f"crisp {VERSION}\n".encode()
    yield "check", "".join(f"{c.state} {c.name}: {c.text}\n" for c in (check() for check in CHECKS)).encode()
    yield "configuration", _part(partial(_configuration, config_path))
    for name, call in _calls().items():
        yield f"daemon/{name}", _part(partial(_asked, socket_path, call))
    for name, arguments in PROGRAMS.items():
        yield name, _part(partial(_output, arguments))
    yield "host/mounts", _part(partial(_tail, Path("/proc/self/mountinfo")))
    state = Path(socket_path).parent
    for path in sorted(state.glob("containers/*/*.log")):
        if path.stat().st_size:
            yield f"containers/{path.parent.name}/{path.stem}", _part(partial(_tail, path))
    for path in sorted(state.glob("containers/*/exit.json")):
        yield f"containers/{path.parent.name}/exit", _part(partial(_tail, path))


def _part(work: Callable[[], bytes]) -> bytes:
    """What `work` returns, or why it could not."""
    try:
        return work()
    except (OSError, ValueError, CrispError, subprocess.SubprocessError) as error:
        return f"not collected: {error}\n".encode()


def _output(arguments: tuple[str, ...]) -> bytes:
    result = subprocess.run(
        arguments,
        check=False,  # what a program that failed has said is worth reading too
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PROGRAM_SECONDS,
    )
    return result.stdout[-LONGEST:]


def _tail(path: Path) -> bytes:
    with open(path, "rb") as file:
        if path.stat().st_size > LONGEST:
            file.seek(-LONGEST, os.SEEK_END)
        return file.read(LONGEST)


def _configuration(path: Path | None) -> bytes:
    """What the file and the defaults make together. Passwords are never in it: they are in files that it names."""
    from runtime.config.settings import load  # noqa: PLC0415

    return json.dumps(dataclasses.asdict(load(path)), indent=2, default=str).encode()


# --- the daemon ------------------------------------------------------------------------------------------------------


def _calls() -> dict[str, Callable[[Client], Message]]:
    from proto import api_pb2 as cri  # noqa: PLC0415

    return {
        "version": lambda c: c.runtime.Version(cri.VersionRequest(), timeout=CALL_SECONDS),
        "status": lambda c: c.runtime.Status(cri.StatusRequest(verbose=True), timeout=CALL_SECONDS),
        "sandboxes": lambda c: c.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=CALL_SECONDS),
        "containers": lambda c: c.runtime.ListContainers(cri.ListContainersRequest(), timeout=CALL_SECONDS),
        "container-stats": lambda c: c.runtime.ListContainerStats(cri.ListContainerStatsRequest(), timeout=CALL_SECONDS),
        "images": lambda c: c.images.ListImages(cri.ListImagesRequest(), timeout=CALL_SECONDS),
        "image-disk": lambda c: c.images.ImageFsInfo(cri.ImageFsInfoRequest(), timeout=CALL_SECONDS),
    }


def _asked(socket_path: str, call: Callable[[Client], Message]) -> bytes:
    from google.protobuf import json_format  # noqa: PLC0415

    try:
        with Client(socket_path) as client:
            reply = json_format.MessageToDict(call(client), preserving_proto_field_name=True)
    except CallError as error:
        raise ValueError(f"{error.code.name}: {error.message}") from None
    return json.dumps(without_secrets(reply), indent=2, sort_keys=True).encode()


def without_secrets(value: Any) -> Any:
    """A reply with the names of annotations and labels alone: clients put whole manifests into them."""
    match value:
        case dict():
            return {
                key: sorted(item) if key in ("annotations", "labels") and isinstance(item, dict) else without_secrets(item)
                for key, item in value.items()
            }
        case list():
            return [without_secrets(item) for item in value]
    return value
