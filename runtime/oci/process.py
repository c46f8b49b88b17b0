"""The `process` part of the OCI configuration (OCI runtime spec, config.md "Process")."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kernel.capabilities import normal_name
from proto import api_pb2 as cri
from proto.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from imagesvc.store.images import OciConfig
    from runtime.host.host import Host

DEFAULT_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DEFAULT_CAPABILITIES: Final = frozenset(
    "CAP_" + name
    for name in [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]
)
"""What a container gets that asks for nothing: the same as Docker, containerd and, but for NET_RAW, CRI-O."""


@dataclass(frozen=True, slots=True)
class UserRequest:
    """Who the container shall run as; the shim looks names up in the mounted root filesystem."""

    user: str
    """uid, name, uid:gid, name:group …, as in an image's USER; empty is root."""
    group: int | None
    supplemental: tuple[int, ...]
    strict: bool
    """Do not add the groups that the image's /etc/group gives to the user."""

    def document(self) -> dict[str, Any]:
        """As the shim expects it."""
        return {
            "user": self.user,
            "group": self.group,
            "supplemental": list(self.supplemental),
            "policy": "strict" if self.strict else "merge",
        }


def arguments(config: cri.ContainerConfig, image: OciConfig) -> list[str]:
    """Command line: `command` replaces entrypoint and cmd, `args` replaces cmd."""
    line = [*config.command, *config.args] if config.command else [*image.entrypoint, *(config.args or image.cmd)]
    if not line or not line[0]:
        raise invalid(f"container {config.metadata.name} has no command, and its image has no entrypoint or cmd")
    return line


def environment(config: cri.ContainerConfig, image: OciConfig, hostname: str) -> list[str]:
    """Variables: PATH, the host name, the image's, the client's; the later wins, each name stands once."""
    merged: dict[str, str] = {}
    if config.tty:
        merged["TERM"] = "xterm"
    if hostname:
        merged["HOSTNAME"] = hostname
    for entry in (DEFAULT_PATH, *image.env):
        name, _, value = entry.partition("=")
        merged[name] = value
    for pair in config.envs:
        merged[pair.key] = pair.value.decode("utf-8", "surrogateescape")
    return [f"{name}={value}" for name, value in merged.items()]


def user(config: cri.ContainerConfig, image: OciConfig) -> UserRequest:
    """The user that the request names, else the image's."""
    context = config.linux.security_context
    group = context.run_as_group.value if context.HasField("run_as_group") else None
    if context.HasField("run_as_user"):
        name = str(context.run_as_user.value)
    elif context.run_as_username:
        name = context.run_as_username
    elif group is not None and not image.user:
        raise invalid("run_as_group needs run_as_user or run_as_username")
    else:
        name = image.user
    return UserRequest(
        user=name,
        group=group,
        supplemental=tuple(context.supplemental_groups),
        strict=context.supplemental_groups_policy == cri.Strict,
    )


def canonical_capability(name: str, known: frozenset[str]) -> str:
    """`net_admin`, `NET_ADMIN` and `CAP_NET_ADMIN` are CAP_NET_ADMIN; INVALID_ARGUMENT if the kernel has none such."""
    canonical = normal_name(name)
    if canonical is None or canonical not in known:
        raise invalid(f"unknown capability {name!r}")
    return canonical


def _names(requested: Iterable[str], known: frozenset[str]) -> set[str]:
    return {canonical_capability(name, known) for name in requested if name.upper() != "ALL"}


def capabilities(config: cri.ContainerConfig, host: Host) -> dict[str, list[str]]:
    """Capability sets, cut down to what the host has to give.

    Inheritable stays empty (CVE-2022-24769) but for what is asked to be ambient, which the kernel ties to it.
    """
    context = config.linux.security_context
    if context.privileged:
        wanted, ambient = set(host.capabilities), set[str]()
    else:
        known = host.known_capabilities
        asked = context.capabilities
        add, drop = asked.add_capabilities, asked.drop_capabilities
        wanted = set(known if _has_all(add) else DEFAULT_CAPABILITIES)
        if _has_all(drop):
            wanted = set()
        ambient = _names(asked.add_ambient_capabilities, known)
        wanted = (wanted | _names(add, known) | ambient) - _names(drop, known)
    allowed = sorted(wanted & host.capabilities)
    kept_ambient = sorted(ambient & set(allowed))
    return {
        "bounding": allowed,
        "effective": allowed,
        "permitted": allowed,
        "inheritable": kept_ambient,
        "ambient": kept_ambient,
    }


def _has_all(names: Iterable[str]) -> bool:
    return any(name.upper() == "ALL" for name in names)


def oom_score_adj(requested: int, host: Host) -> int:
    """-1000 to 1000; without CAP_SYS_RESOURCE nobody may go below his own."""
    return max(requested, host.lowest_oom_score_adj)


def build(
    config: cri.ContainerConfig, image: OciConfig, hostname: str, rlimits: list[dict[str, Any]], host: Host
) -> dict[str, Any]:
    """The whole process object; the shim adds `user` once it has mounted the root filesystem."""
    return {
        "terminal": config.tty,
        "args": arguments(config, image),
        "env": environment(config, image, hostname),
        # A relative one is below the root, as crun has it; runc refuses it.
        "cwd": posixpath.join("/", config.working_dir or image.working_dir),
        "capabilities": capabilities(config, host),
        "rlimits": rlimits,
        "noNewPrivileges": config.linux.security_context.no_new_privs,
        "oomScoreAdj": oom_score_adj(config.linux.resources.oom_score_adj, host),
    }
