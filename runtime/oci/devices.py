"""Device nodes and device rules of the OCI configuration (OCI runtime spec, config-linux.md "Devices")."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Final

from proto.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proto import api_pb2 as cri

DENY_ALL: Final = {"allow": False, "access": "rwm"}
ALLOW_ALL: Final = {"allow": True, "access": "rwm"}

DEFAULT_RULES: Final = (
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2))
    ),
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
)
"""null, zero, full, random, urandom, tty, ptmx and pts; making any node is harmless where opening it is not allowed."""

SKIPPED: Final = frozenset(("/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.udev", "/dev/console"))
"""Below /dev, not given to privileged containers: the OCI runtime makes its own."""


def _device(host_path: str, container_path: str) -> dict[str, Any] | None:
    try:
        found = os.stat(host_path)
    except OSError as error:
        raise invalid(f"device {host_path}: {error.strerror}") from None
    if stat.S_ISCHR(found.st_mode):
        kind = "c"
    elif stat.S_ISBLK(found.st_mode):
        kind = "b"
    else:
        return None
    return {
        "path": container_path,
        "type": kind,
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "fileMode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }


def _walk(directory: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.path in SKIPPED:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif not entry.is_symlink():
                yield entry.path


def privileged(*, nodes: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Nodes and rules of a privileged container: every device, its nodes unless the handler leaves them out."""
    found = []
    if nodes:
        for path in _walk("/dev"):
            try:
                device = _device(path, path)
            except Exception:  # noqa: S112  a device that went away meanwhile
                continue
            if device is not None:
                found.append(device)
    return found, [ALLOW_ALL]


def requested(
    devices: Iterable[cri.Device], owner: tuple[int, int] | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Nodes and rules for what the request names; a directory stands for all devices in it.

    `owner` is the uid and gid that the nodes get in place of the host's.
    """
    nodes: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = [DENY_ALL, *DEFAULT_RULES]
    for device in devices:
        if not set(device.permissions) <= set("rwm"):
            raise invalid(f"device {device.host_path}: permissions {device.permissions!r} are not of r, w and m")
        for node in _expand(device.host_path, device.container_path or device.host_path):
            if owner is not None:
                node["uid"], node["gid"] = owner
            nodes.append(node)
            rule = {key: node[key] for key in ("type", "major", "minor")}
            rules.append({"allow": True, **rule, "access": device.permissions or "rwm"})
    return nodes, rules


def _expand(host_path: str, container_path: str) -> list[dict[str, Any]]:
    real = os.path.realpath(host_path)
    if os.path.isdir(real):
        below = ((path, container_path + path[len(real) :]) for path in _walk(real))
        return [node for host, inside in below if (node := _device(host, inside)) is not None]
    node = _device(real, container_path)
    if node is None:
        raise invalid(f"{host_path} is not a device")
    return [node]
