"""What `crisp run` is told of a container, under docker's names, as the CRI's messages."""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import secrets
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from runtime.cli import run_mounts, run_ports
from runtime.cli.docker_words import unneeded
from runtime.cli.output import fail
from runtime.oci.hidden_paths import MASKED, READONLY

if TYPE_CHECKING:
    from proto import api_pb2 as cri

MAX_ID: Final = (1 << 32) - 2
MAX_BYTES: Final = (1 << 63) - 1
CPU_PERIOD: Final = 100_000  # µs, as docker and the kubelet
_OF_PODS: Final = ("publish", "publish_all", "hostname", "dns", "dns_search", "add_host", "shm_size", "sysctls")
_PODS: Final = ("bridge", "default")
"""docker's names of the network that a container has anyway."""
_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", re.ASCII)
_GPU: Final = "nvidia.com/gpu="
"""The CDI devices that --gpus means, with docker and podman too."""
USERS: Final = 1 << 16
"""Ids of a user namespace."""
_FIRST_USER, _LAST_USER = 1 << 29, 1 << 30
"""Between them are the ids that --userns auto takes: above what adduser, the kubelet and /etc/subuid hand out by default."""


@dataclass
class Options:
    """As they were typed; the defaults are none of these."""

    interactive: bool = False
    tty: bool = False
    environment: tuple[str, ...] = ()
    env_files: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    publish_all: bool = False
    expose: tuple[str, ...] = ()
    sig_proxy: bool = True
    workdir: str = ""
    user: str = ""
    group_add: tuple[int, ...] = ()
    entrypoint: str | None = None
    hostname: str = ""
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    add_host: tuple[str, ...] = ()
    network: str = "pod"
    userns: str = "host"
    pid: str = ""
    ipc: str = ""
    cpus: float = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    memory: str = ""
    pids_limit: int = 0
    oom_score_adj: int = 0
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    ulimits: tuple[str, ...] = ()
    init: bool = False
    tmpfs: tuple[str, ...] = ()
    shm_size: str = ""
    privileged: bool = False
    read_only: bool = False
    security: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    sysctls: tuple[str, ...] = ()
    stop_signal: str = ""
    restart: str = "no"
    gpus: str = ""


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, for a command; it gets one Options."""
    text, several = click.option, _several
    added: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
        text("-i", "--interactive", is_flag=True, help="Pass our input on."),
        text("-t", "--tty", is_flag=True, help="Give the container a terminal."),
        several("-e", "--env", "environment", metavar="NAME[=VALUE]", help="Variable; without a value, ours."),
        several("--env-file", "env_files", metavar="FILE", help="Variables, one a line."),
        several("-v", "--volume", "volumes", metavar="DIR:PLACE[:ro]", help="A directory of this node."),
        several("--mount", "mounts", metavar="type=bind|tmpfs,target=…", help="The same in words: source=…, readonly."),
        several("-p", "--publish", metavar="[[ADDRESS:]PORT:]PORT[/udp]", help="A port of this node that leads there."),
        text("-P", "--publish-all", is_flag=True, help="Free ports of this node for all that the image exposes."),
        text("-w", "--workdir", default="", help="Working directory."),
        text("-u", "--user", default="", metavar="USER[:GROUP]", help="Names, or numbers."),
        several("--group-add", type=click.IntRange(0, MAX_ID), help="One more group, by its number."),
        text("--entrypoint", default=None, help="The program in place of the image's."),
        text("-h", "--hostname", default="", help="The pod's; its name if absent."),
        several("--dns", metavar="ADDRESS", help="Name server in place of the node's."),
        several("--dns-search", metavar="DOMAIN", help="Domain to search."),
        several(
            "--add-host", metavar="NAME:ADDRESS", help="A line for its /etc/hosts; host-gateway is this node's address."
        ),
        text(
            "--network",
            "--net",
            type=click.Choice(["pod", "host", "none", *_PODS]),
            default="pod",
            callback=lambda _context, _option, value: "pod" if value in _PODS else value,
            help="Its own, the node's, or the loopback alone.",
        ),
        text(
            "--userns",
            type=click.Choice(["host", "auto"]),
            default="host",
            help="auto: users of its own; root in there is nobody here.",
        ),
        text("--pid", type=click.Choice(["", "host", "private"]), default="", callback=_own, help="The node's processes."),
        text("--ipc", type=click.Choice(["", "host", "private"]), default="", callback=_own, help="The node's IPC."),
        unneeded("--no-healthcheck"),
        text("--sig-proxy/--no-sig-proxy", default=True, hidden=True),
        several("--expose", metavar="PORT[/udp]", help="For --publish-all, as if the image exposed it."),
        *_limits_and_rights(),
    ]

    @functools.wraps(command)
    def gathered(*words: Any, **values: Any) -> Any:
        ours = {field.name: values.pop(field.name) for field in fields(Options)}
        return command(*words, options=Options(**ours), **values)

    return functools.reduce(lambda done, option: option(done), reversed(added), gathered)


def _own(_context: click.Context, _option: click.Parameter, value: str) -> str:
    return "" if value == "private" else value


def _several(*names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """One that may be given more than once."""
    return click.option(*names, multiple=True, **attributes)


def _limits_and_rights() -> list[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    text, several = click.option, _several
    return [
        text("--cpus", type=float, default=0, metavar="NUMBER", help="Processors that it may use, such as 0.5."),
        text(
            "--cpu-shares",
            "-c",
            type=click.IntRange(0, 1 << 18),
            default=0,
            help="Its weight beside others; 1024 is one processor's.",
        ),
        text("--cpuset-cpus", default="", metavar="0-2,7", help="Processors that it may run on."),
        text("-m", "--memory", default="", metavar="SIZE", help="Limit, such as 64M."),
        text("--pids-limit", type=int, default=0, help="Processes that there may be."),
        text(
            "--oom-score-adj", type=click.IntRange(-1000, 1000), default=0, help="Who the kernel kills first: -1000 to 1000."
        ),
        several("--ulimit", "ulimits", metavar="NAME=SOFT[:HARD]", help="A resource limit, such as nofile=1024:2048."),
        text("--init", is_flag=True, help="An init beside it takes in what others leave behind."),
        several("--tmpfs", metavar="PLACE[:OPTIONS]", help="A tmpfs, such as /run:size=64M,mode=755,exec."),
        text("--shm-size", default="", metavar="SIZE", help="Of the pod's /dev/shm, such as 256M."),
        several("--cap-add", metavar="NAME", help="A capability more, or ALL."),
        several("--cap-drop", metavar="NAME", help="A capability less, or ALL."),
        text("--privileged", is_flag=True, help="All capabilities and devices, no protection."),
        text("--read-only", is_flag=True, help="Its root cannot be written."),
        several("--security-opt", "security", metavar="OPTION", help="no-new-privileges, seccomp=…, apparmor=…, label=…"),
        several("--device", "devices", metavar="PATH[:PLACE[:rwm]]", help="A device of this node, or a CDI name."),
        several("-l", "--label", "labels", metavar="NAME=VALUE", help="Label of the container."),
        several("--annotation", "annotations", metavar="NAME=VALUE", help="Annotation of the container."),
        several("--sysctl", "sysctls", metavar="NAME=VALUE", help="Kernel parameter of the pod's namespaces."),
        text("--stop-signal", default="", help="What asks it to end, such as SIGQUIT."),
        text("--gpus", default="", metavar="all|device=…", help=f"NVIDIA's, by CDI: the same as --device {_GPU}all."),
        text("--restart", default="no", metavar="no", help="Nothing else: what restarts is the kubelet, or systemd."),
    ]


def container(options: Options, name: str, words: tuple[str, ...]) -> cri.ContainerConfig:
    """The container as it is wanted, without its image. Ends the command for what is none of it."""
    from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

    if not _NAME.fullmatch(name):
        fail(f"--name {name}: letters, digits and . _ - are what names are made of, and a letter or digit begins them", 2)
    if options.entrypoint == "" and not words:
        fail("--entrypoint: an empty one takes the image's away, and there is no command to run in its place", 2)
    if options.workdir and not options.workdir.startswith("/"):
        fail(f"--workdir {options.workdir}: not an absolute path", 2)
    if options.restart != "no":
        fail("--restart: crisp restarts no container of its own accord: the kubelet does, or systemd", 2)
    if options.init and options.pid == "host":
        fail("--init: with --pid host the node's init is its", 2)
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=name),
        # An empty entrypoint takes the image's away: what is run are the words alone.
        command=[options.entrypoint] if options.entrypoint else [] if options.entrypoint is None else words,
        args=() if options.entrypoint == "" else words,
        working_dir=options.workdir,
        envs=_variables(options),
        mounts=run_mounts.binds(options.volumes, options.mounts),
        labels=_pairs("--label", options.labels),
        annotations=_annotations(options),
        log_path=f"{name}.log",
        stdin=options.interactive,
        # A terminal stays when whoever is at it leaves; other input ends with who gives it.
        stdin_once=options.interactive and not options.tty,
        tty=options.tty,
    )
    if options.stop_signal:
        config.stop_signal = _signal(options.stop_signal)  # type: ignore[assignment]
    for device in (*options.devices, *_gpus(options.gpus)):
        _add_device(config, device)
    _fill_resources(config.linux.resources, options)
    _fill_security(config.linux.security_context, options)
    return config


def _signal(text: str) -> int:
    """By a name, with or without SIG, or by a number."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    with suppress(ValueError):
        text = signal.Signals(int(text)).name
    name = "SIGNAL_SIG" + text.upper().removeprefix("SIG").replace("+", "PLUS").replace("-", "MINUS")
    if name not in cri.Signal.keys():  # noqa: SIM118  it is no dictionary
        fail(f"--stop-signal {text}: no such signal", 2)
    return int(cri.Signal.Value(name))


def refuse_for_pod(options: Options) -> None:
    """End the command for what is a pod's, where that is there already."""
    usual = Options()
    for field in (*_OF_PODS, "network", "userns"):
        if getattr(options, field) != getattr(usual, field):
            word = {"sysctls": "sysctl"}.get(field, field.replace("_", "-"))
            fail(f"--{word}: that is the pod's, and the pod is there: it goes with none for --pod", 2)


def pod(options: Options, name: str, uid: str, logs: str) -> cri.PodSandboxConfig:
    """The pod around it."""
    from proto import api_pb2 as cri  # noqa: PLC0415
    from runtime.oci import asked  # noqa: PLC0415

    own = options.network != "host"
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=uid, namespace="default"),
        hostname=options.hostname or (name[:63] if own else ""),
        log_directory=logs,
        port_mappings=[mapping for text in options.publish for mapping in run_ports.published(text)],
    )
    if (options.publish or options.publish_all) and options.network != "pod":
        word = "--publish" if options.publish else "--publish-all"
        fail(f"{word}: nothing leads to a container with --network {options.network}, or needs to", 2)
    if options.shm_size:
        config.annotations[asked.SHM_SIZE] = str(amount("--shm-size", options.shm_size))
    if options.add_host:
        config.annotations[asked.HOSTS] = "\n".join(map(host, options.add_host))
    if options.dns or options.dns_search:
        config.dns_config.servers.extend(map(_address, options.dns))
        config.dns_config.searches.extend(options.dns_search)
    config.linux.sysctls.update(_pairs("--sysctl", options.sysctls))
    config.linux.security_context.privileged = options.privileged
    config.linux.security_context.namespace_options.CopyFrom(_namespaces(options))
    return config


def _namespaces(options: Options) -> cri.NamespaceOption:
    from proto import api_pb2 as cri  # noqa: PLC0415

    networks = {"pod": cri.POD, "host": cri.NODE, "none": cri.CONTAINER}
    return cri.NamespaceOption(
        network=networks[options.network],
        # With a pod's PID namespace comes an init that reaps; the container's own process is then not the first one.
        pid=cri.NODE if options.pid == "host" else cri.POD if options.init else cri.CONTAINER,
        ipc=cri.NODE if options.ipc == "host" else cri.POD,
    )


def give_users(pod: cri.PodSandboxConfig, taken: Iterable[int]) -> None:
    """Users of its own for a new pod; `taken` are the first ids of others'."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    free = sorted(set(range(_FIRST_USER, _LAST_USER, USERS)) - set(taken))
    mapped = [cri.IDMapping(host_id=secrets.choice(free), container_id=0, length=USERS)]
    users = cri.UserNamespace(mode=cri.POD, uids=mapped, gids=mapped)
    pod.linux.security_context.namespace_options.userns_options.CopyFrom(users)


def _annotations(options: Options) -> dict[str, str]:
    """The container's own, with those by which crisp takes what the CRI has no field for."""
    from runtime.oci import asked  # noqa: PLC0415

    found = {}
    if places := run_mounts.in_memory(options.tmpfs, options.mounts):
        found[asked.PREFIX + asked.TMPFS] = "\n".join(places)
    if options.ulimits:
        found[asked.PREFIX + asked.ULIMITS] = ",".join(options.ulimits)
    return {**_pairs("--annotation", options.annotations), **found}


def host(text: str) -> str:
    """NAME:ADDRESS, or NAME=ADDRESS, as a line of /etc/hosts; the address may have brackets and colons."""
    name, sign, address = text.partition("=" if "=" in text else ":")
    if not name or not sign or not address or set(text) & set(" \t\n"):
        fail(f"--add-host {text}: not of the form NAME:ADDRESS", 2)
    return f"{address.strip('[]')} {name}"


def _gpus(text: str) -> Iterable[str]:
    """`all`, or `device=0,1`, as CDI names."""
    text = text.strip('"')
    chosen = text.removeprefix("device=")
    if text and text != "all" and (chosen == text or not chosen):
        fail(f"--gpus {text}: all, or device=… with the names of some; their number alone does not say which", 2)
    return [_GPU + name for name in chosen.split(",")] if text else []


def _variables(options: Options) -> Iterable[cri.KeyValue]:
    from proto import api_pb2 as cri  # noqa: PLC0415

    entries = []
    for path in options.env_files:
        try:
            with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:  # with a byte order mark, or without
                lines = [line.rstrip("\n").lstrip() for line in file]
        except OSError as error:
            fail(f"--env-file {path}: {error.strerror}", 2)
        entries += [line for line in lines if line and not line.startswith("#")]
        if wrong := next((line for line in entries if set(line.partition("=")[0]) & set(" \t")), ""):
            fail(f"--env-file {path}: {wrong!r}: the name of a variable has no spaces", 2)
    for entry in (*entries, *options.environment):
        name, equals, value = entry.partition("=")
        if not name:
            fail(f"--env {entry}: not of the form NAME=VALUE", 2)
        if equals or name in os.environ:
            yield cri.KeyValue(key=name, value=os.fsencode(value if equals else os.environ[name]))


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        fail(f"--dns {text}: not an IP address", 2)


def _add_device(config: cri.ContainerConfig, text: str) -> None:
    if not text.startswith("/"):
        config.CDI_devices.add(name=text)
        return
    path, _, rest = text.partition(":")
    if os.path.isdir(path) and not any(map(_is_device, Path(path).rglob("*"))):
        fail(f"--device {text}: there is no device in that directory", 2)
    place, _, rights = rest.rpartition(":") if rest.count(":") else (rest, "", "")
    if not place.startswith("/") and place:
        place, rights = "", place
    config.devices.add(host_path=path, container_path=place or path, permissions=rights or "rwm")


def _is_device(path: Path) -> bool:
    return path.is_char_device() or path.is_block_device()


def _fill_resources(resources: cri.LinuxContainerResources, options: Options) -> None:
    resources.memory_limit_in_bytes = amount("--memory", options.memory) if options.memory else 0
    resources.cpu_shares, resources.cpuset_cpus = options.cpu_shares, options.cpuset_cpus
    resources.oom_score_adj = options.oom_score_adj
    if not 0 <= options.cpus <= 1 << 20:  # nor what is no number
        fail(f"--cpus {options.cpus}: not a number of processors", 2)
    if options.cpus:
        resources.cpu_period, resources.cpu_quota = CPU_PERIOD, max(1000, round(options.cpus * CPU_PERIOD))
    if options.pids_limit:
        resources.unified["pids.max"] = str(options.pids_limit) if options.pids_limit > 0 else "max"


def _fill_security(context: cri.LinuxContainerSecurityContext, options: Options) -> None:
    from proto import api_pb2 as cri  # noqa: PLC0415

    context.privileged, context.readonly_rootfs = options.privileged, options.read_only
    context.namespace_options.CopyFrom(_namespaces(options))
    context.capabilities.add_capabilities.extend(options.cap_add)
    context.capabilities.drop_capabilities.extend(options.cap_drop)
    context.supplemental_groups.extend(options.group_add)
    if not options.privileged:
        context.masked_paths.extend(MASKED)
        context.readonly_paths.extend(READONLY)
        context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    user, colon, group = options.user.partition(":")
    if user.isdecimal():
        context.run_as_user.value = _id(options.user, user)
    elif user:
        context.run_as_username = user
    if colon:
        if not group.isdecimal():
            fail(f"--user {options.user}: the CRI knows groups by their numbers only", 2)
        context.run_as_group.value = _id(options.user, group)
    for text in options.security:
        _secure(context, text)


def _id(user: str, digits: str) -> int:
    if len(digits) > len(str(MAX_ID)) or int(digits) > MAX_ID:
        fail(f"--user {user}: {digits} is not a user or group id", 2)
    return int(digits)


def _secure(context: cri.LinuxContainerSecurityContext, text: str) -> None:
    from proto import api_pb2 as cri  # noqa: PLC0415

    key, _, value = text.replace(":", "=", 1).partition("=") if "=" not in text else text.partition("=")
    if key == "no-new-privileges" and value in ("", "true", "false"):
        context.no_new_privs = value != "false"
    elif key in ("seccomp", "apparmor") and value:
        profile = context.seccomp if key == "seccomp" else context.apparmor
        if value == "unconfined":
            profile.profile_type = cri.SecurityProfile.Unconfined
        else:
            profile.profile_type = cri.SecurityProfile.Localhost
            if key == "seccomp" and not os.path.isfile(value):
                fail(f"--security-opt {text}: there is no file {value}", 2)
            profile.localhost_ref = os.path.realpath(value) if key == "seccomp" else value
    elif key == "label" and ":" in value:
        kind, _, label = value.partition(":")
        if kind not in ("user", "role", "type", "level"):
            fail(f"--security-opt {text}: user, role, type and level are what labels have", 2)
        setattr(context.selinux_options, kind, label)
    else:
        fail(f"--security-opt {text}: no-new-privileges, seccomp=, apparmor= and label=KIND: are understood", 2)


def amount(option: str, text: str) -> int:
    """Bytes: a number with k, m, g or t after it, of which each is 1024 of the one before."""
    form = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?", text.lower())
    if form is None:
        fail(f"{option} {text}: not a size such as 64M", 2)
    bytes_ = float(form[1]) * _UNITS[form[2]]
    if bytes_ >= MAX_BYTES:
        fail(f"{option} {text}: more than there can be", 2)
    return int(bytes_)


def _pairs(option: str, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=")[::2] for text in texts]
    if any(not key for key, _ in pairs):
        fail(f"{option}: not of the form NAME=VALUE", 2)
    return dict(pairs)
