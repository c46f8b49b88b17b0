"""Adjustments that put something into a container: devices, mounts, and the limits of its process."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any, Final

from kernel import mounts as mount_table
from proto.errors import invalid
from runtime.config.ulimits import FOR_ADMINISTRATORS
from runtime.nri.owners import removed
from runtime.oci import ulimits
from runtime.oci.devices import DEFAULT_RULES
from runtime.oci.mounts import arrange
from runtime.oci.resources import withheld

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proto import nri_pb2 as nri
    from runtime.host.host import Host

RELABEL: Final = "relabel"
"""A mount's pseudo-option: its source gets the container's SELinux label."""

NEEDED: Final = {"rshared": ("shared",), "rslave": ("shared", "slave")}
"""What propagation the source of a mount must have."""

MAX_MODE: Final = 0o7777
MAX_DEVICE: Final = (1 << 32) - 1


def devices(linux: dict[str, Any], asked: Iterable[nri.LinuxDevice]) -> None:
    """Nodes, and for each the rule that lets it be used; a node that is removed takes the rule with it."""
    rules = linux.setdefault("resources", {}).setdefault("devices", [])
    for device in asked:
        gone = removed(device.path)
        path = device.path if gone is None else gone
        kept = [node for node in linux.get("devices", []) if node["path"] != path]
        for node in linux.get("devices", []):
            if node["path"] == path and not any(_numbers(other) == _numbers(node) for other in kept):
                rules[:] = [rule for rule in rules if _numbers(rule) != _numbers(node) or rule in DEFAULT_RULES]
        if gone is None:
            node = _node(device)
            kept.append(node)
            if node["type"] != "p":
                rules.append({"allow": True, "access": "rwm" if node["type"] == "b" else "rw", **_rule(node)})
        linux["devices"] = kept


def _numbers(place: dict[str, Any]) -> tuple[Any, ...]:
    return (place.get("type"), place.get("major"), place.get("minor"))


def _rule(node: dict[str, Any]) -> dict[str, Any]:
    return {"type": "c" if node["type"] == "u" else node["type"], "major": node["major"], "minor": node["minor"]}


def _node(device: nri.LinuxDevice) -> dict[str, Any]:
    if not device.path.startswith("/") or posixpath.normpath(device.path).strip("/") == "":
        raise invalid(f"device {device.path!r} is not an absolute path")
    if device.type not in ("b", "c", "u", "p"):
        raise invalid(f"device {device.path}: type {device.type!r} is none of b, c, u, p")
    found: dict[str, Any] = {"path": device.path, "type": device.type}
    if device.type != "p":
        if not (0 <= device.major <= MAX_DEVICE and 0 <= device.minor <= MAX_DEVICE):
            raise invalid(f"device {device.path}: {device.major}:{device.minor} are no device numbers")
        found |= {"major": device.major, "minor": device.minor}
    if device.HasField("file_mode"):
        found["fileMode"] = device.file_mode.value & MAX_MODE  # Go's mode may have bits of the type
    for name in ("uid", "gid"):
        if device.HasField(name):
            found[name] = getattr(device, name).value
    return found


def mounts(spec: dict[str, Any], asked: Iterable[nri.Mount]) -> tuple[str, ...]:
    """Mounts; the sources that are to be relabelled. A mount takes the place of one with the same destination."""
    added: dict[str, dict[str, Any]] = {}
    gone: set[str] = set()
    relabel = []
    for mount in asked:
        name = removed(mount.destination)
        if name is not None:
            gone.add(_place(name))
            added.pop(_place(name), None)
            continue
        found = _mount(mount)
        if RELABEL in mount.options:
            relabel.append(found["source"])
        added[_place(mount.destination)] = found
    if gone or added:
        kept = [mount for mount in spec["mounts"] if _place(mount["destination"]) not in gone | added.keys()]
        _propagate(spec["linux"], list(added.values()))
        spec["mounts"] = arrange(kept, list(added.values()))
    return tuple(relabel)


def destinations(asked: Iterable[nri.Mount]) -> tuple[str, ...]:
    """Where the mounts are that are not removals."""
    return tuple(mount.destination for mount in asked if removed(mount.destination) is None)


def _place(destination: str) -> str:
    return posixpath.normpath("/" + destination.lstrip("/"))


def _mount(mount: nri.Mount) -> dict[str, Any]:
    if not mount.destination.startswith("/") or _place(mount.destination) == "/":
        raise invalid(f"mount {mount.destination!r} is not an absolute path below the container's root")
    options = [option for option in mount.options if option != RELABEL]
    if ("bind" in options or "rbind" in options or mount.type == "bind") and not mount.source.startswith("/"):
        raise invalid(f"mount {mount.destination}: its source {mount.source!r} is not an absolute path")
    return {"destination": _place(mount.destination), "type": mount.type, "source": mount.source, "options": options}


def _propagate(linux: dict[str, Any], added: Iterable[dict[str, Any]]) -> None:
    """The root has to pass on at least what its mounts do; what their sources do not pass on, they cannot either."""
    table = None
    for mount in added:
        options = mount["options"]
        wanted = next((option for option in reversed(options) if option in ("rprivate", *NEEDED)), "")
        if wanted not in NEEDED or not mount["source"].startswith("/"):
            continue
        table = mount_table.mountinfo() if table is None else table
        # The path is not touched, for its file system can hang; a plugin that names it by a symbolic link gets its parent's.
        below = mount_table.holding(_place(mount["source"]), table)
        if below.propagation not in NEEDED[wanted]:
            if below.mount_point != b"/":
                needed = " or ".join(NEEDED[wanted])
                raise invalid(
                    f"mount {mount['destination']} is {wanted}, but its source {mount['source']} is no {needed} mount"
                )
            withheld(f"{wanted} mounts of NRI plugins: the host's root is a private mount")
            found = "rslave" if below.propagation == "slave" else "rprivate"
            mount["options"] = [found if option == wanted else option for option in options]
            wanted = found
        if wanted == "rshared" or (wanted == "rslave" and linux.get("rootfsPropagation") != "rshared"):
            linux["rootfsPropagation"] = wanted


def rlimits(process: dict[str, Any], asked: Iterable[nri.POSIXRlimit], host: Host) -> None:
    """Limits by type, cut down to what the host lets the daemon give."""
    for limit in asked:
        name = limit.type.removeprefix("RLIMIT_").lower()
        if not limit.type.startswith("RLIMIT_") or limit.type != limit.type.upper() or name not in FOR_ADMINISTRATORS:
            raise invalid(f"{limit.type!r} is no resource limit")
        if limit.soft > limit.hard:
            raise invalid(f"{limit.type}: the soft limit {limit.soft} is above the hard limit {limit.hard}")
        most = ulimits.ceiling(name, host)
        found = {"type": limit.type, "soft": min(limit.soft, most), "hard": min(limit.hard, most)}
        process["rlimits"] = [old for old in process.get("rlimits", []) if old["type"] != limit.type] + [found]
