"""CDI specification files (Container Device Interface, SPEC.md up to 1.1.0), parsed strictly.

    {"cdiVersion": "0.6.0", "kind": "vendor.com/class", "containerEdits": EDITS, "devices": [{"name", "containerEdits"}]}

A file is JSON or YAML. Host interfaces moved into a pod (`netDevices`, 1.1.0) are refused: that is the pod network's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from proto.errors import invalid
from runtime.oci.hooks import STAGES, parse_hook
from runtime.oci.json_fields import Fields, read_document

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS: Final = frozenset(("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"))

KIND: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device node; None is what the host's node has."""

    path: str
    host_path: str
    kind: str
    major: int | None
    minor: int | None
    file_mode: int | None
    permissions: str
    uid: int | None
    gid: int | None


@dataclass(frozen=True, slots=True)
class Edits:
    """What is done to a container."""

    env: tuple[str, ...]
    nodes: tuple[DeviceNode, ...]
    mounts: tuple[dict[str, Any], ...]
    """As in the OCI configuration."""
    hooks: tuple[tuple[str, dict[str, Any]], ...]
    """Stage and hook."""
    gids: tuple[int, ...]
    rdt: dict[str, Any] | None
    """`linux.intelRdt` of the OCI configuration."""


@dataclass(frozen=True, slots=True)
class SpecFile:
    """One file."""

    path: str
    kind: str
    edits: Edits
    """For every container that gets any of its devices."""
    devices: dict[str, Edits]


def read(path: Path) -> SpecFile:
    """Read a file; INVALID_ARGUMENT says what is wrong with it. Blocks."""
    return parse(read_document(path), str(path))


def parse(document: Any, place: str) -> SpecFile:
    """One document. INVALID_ARGUMENT says what is wrong with it and where."""
    fields = Fields(document, place)
    version, kind = fields.required("cdiVersion"), fields.required("kind")
    if version not in VERSIONS:
        raise invalid(f"{place}: cdiVersion {version!r} is not known; known: {', '.join(sorted(VERSIONS))}")
    if not KIND.fullmatch(kind):
        raise invalid(f"{place}: kind {kind!r} is not VENDOR/CLASS")
    fields.table("annotations")
    devices = {}
    for item in fields.objects("devices"):
        name = item.required("name")
        item.table("annotations")
        if not NAME.fullmatch(name) or name in devices:
            raise invalid(f"{item.place}: device name {name!r} is malformed or stands there twice")
        devices[name] = _edits(item.inner("containerEdits"))
        item.finish()
    if not devices:
        raise invalid(f"{place}: devices is empty")
    common = _edits(fields.inner("containerEdits"))
    fields.finish()
    return SpecFile(place, kind, common, devices)


def _edits(fields: Fields | None) -> Edits:
    if fields is None:
        return Edits((), (), (), (), (), None)
    env = fields.texts("env")
    for entry in env:
        if not entry.partition("=")[0] or "=" not in entry:
            raise invalid(f"{fields.place}: env {entry!r} is not NAME=VALUE")
    if fields.objects("netDevices"):
        raise invalid(f"{fields.place}: netDevices are not supported")
    gids = fields.numbers("additionalGids")
    if any(not 0 <= gid < 2**32 for gid in gids):
        raise invalid(f"{fields.place}: additionalGids must be group ids")
    found = Edits(
        env=env,
        nodes=tuple(map(_node, fields.objects("deviceNodes"))),
        mounts=tuple(map(_mount, fields.objects("mounts"))),
        hooks=tuple(map(_hook, fields.objects("hooks"))),
        gids=tuple(gid for gid in gids if gid),  # "additionalGids: 0 is ignored", SPEC.md
        rdt=_rdt(fields.inner("intelRdt")),
    )
    fields.finish()
    return found


def _node(fields: Fields) -> DeviceNode:
    path = fields.required("path")
    node = DeviceNode(
        path=path,
        host_path=fields.text("hostPath") or path,
        kind=fields.text("type"),
        major=fields.number("major"),
        minor=fields.number("minor"),
        file_mode=fields.number("fileMode"),
        permissions=fields.text("permissions") or "rwm",
        uid=fields.number("uid"),
        gid=fields.number("gid"),
    )
    fields.finish()
    if not node.path.startswith("/") or not node.host_path.startswith("/"):
        raise invalid(f"{fields.place}: path and hostPath must be absolute")
    if not set(node.permissions) <= set("rwm"):
        raise invalid(f"{fields.place}: permissions {node.permissions!r} are not of r, w and m")
    if node.kind not in ("", "b", "c", "u", "p"):
        raise invalid(f"{fields.place}: type {node.kind!r} is none of b, c, u and p")
    return node


def _mount(fields: Fields) -> dict[str, Any]:
    options = list(fields.texts("options"))
    kind = fields.text("type") or ("bind" if {"bind", "rbind"} & set(options) else "")
    mount: dict[str, Any] = {
        "destination": fields.required("containerPath"),
        "type": kind or "bind",
        "source": fields.required("hostPath"),
        "options": options if kind else [*options, "rbind"],
    }
    fields.finish()
    if not mount["destination"].startswith("/"):
        raise invalid(f"{fields.place}: containerPath must be absolute")
    return mount


def _hook(fields: Fields) -> tuple[str, dict[str, Any]]:
    stage = fields.required("hookName")
    if stage not in STAGES:
        raise invalid(f"{fields.place}: hookName {stage!r} is none of {', '.join(STAGES)}")
    return stage, parse_hook(fields)


def _rdt(fields: Fields | None) -> dict[str, Any] | None:
    if fields is None:
        return None
    found: dict[str, Any] = {
        "closID": fields.text("closID"),
        "l3CacheSchema": fields.text("l3CacheSchema"),
        "memBwSchema": fields.text("memBwSchema"),
        "enableCMT": fields.flag("enableCMT"),
        "enableMBM": fields.flag("enableMBM"),
    }
    fields.finish()
    return {key: value for key, value in found.items() if value}
