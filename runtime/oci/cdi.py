"""CDI devices: found by their names in the node's specification files, and injected into the OCI configuration.

    names    `CDI_devices` of the request, then annotations `cdi.k8s.io/<anything>: "vendor.com/class=name,..."`
    files    *.json, *.yaml, *.yml; a device in a later directory hides one of the same name in an earlier directory

Files are read when a container asks for a device: drivers write them while the daemon runs.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from proto.errors import CrispError, failed_precondition, invalid
from runtime.oci import cdi_spec, mounts
from runtime.oci.cdi_spec import KIND, NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from proto import api_pb2 as cri
    from runtime.oci.cdi_spec import DeviceNode, Edits, SpecFile

ANNOTATION: Final = "cdi.k8s.io/"

TYPES: Final = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}


@dataclass(frozen=True, slots=True)
class _Known:
    file: SpecFile
    priority: int
    conflict: str
    """Path of another file in the same directory with the same device."""


def requested(config: cri.ContainerConfig) -> list[str]:
    """Names of the devices that a container asks for, each once; INVALID_ARGUMENT for what is no name."""
    names = [device.name for device in config.CDI_devices]
    for key, value in sorted(config.annotations.items()):
        if key.startswith(ANNOTATION):
            names += [name.strip() for name in value.split(",")]
    check(names)
    return list(dict.fromkeys(names))


def check(names: Iterable[str]) -> None:
    """INVALID_ARGUMENT for what is no name of a device."""
    for name in names:
        kind, equals, device = name.partition("=")
        if not equals or not KIND.fullmatch(kind) or not NAME.fullmatch(device):
            raise invalid(f"CDI device {name!r} is not VENDOR/CLASS=NAME")


def find(directories: Sequence[Path], names: Iterable[str]) -> list[Edits]:
    """The edits that these devices stand for; a file's common edits come before its first device's. Blocks.

    INVALID_ARGUMENT names a device that no file has, and the files that could not be read; FAILED_PRECONDITION one that two
    files of a directory have.
    """
    known, problems = _scan(directories)
    found: list[Edits] = []
    seen: set[str] = set()
    for name in names:
        device = known.get(name)
        if device is None:
            places = ", ".join(map(str, directories))
            hint = f"; files that are broken: {'; '.join(problems)}" if problems else ""
            raise invalid(f"CDI device {name} is not defined in {places}{hint}")
        if device.conflict:
            raise failed_precondition(f"CDI device {name} is defined by both {device.conflict} and {device.file.path}")
        if device.file.path not in seen:
            seen.add(device.file.path)
            found.append(device.file.edits)
        found.append(device.file.devices[name.partition("=")[2]])
    return found


def _scan(directories: Sequence[Path]) -> tuple[dict[str, _Known], list[str]]:
    known: dict[str, _Known] = {}
    problems = []
    for priority, directory in enumerate(directories):
        try:
            names = sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in names:
            if not name.endswith((".json", ".yaml", ".yml")):
                continue
            try:
                file = cdi_spec.read(directory / name)
            except CrispError as error:
                problems.append(error.message)
                continue
            for device in file.devices:
                qualified = f"{file.kind}={device}"
                before = known.get(qualified)
                clash = before.file.path if before is not None and before.priority == priority else ""
                known[qualified] = _Known(file, priority, clash)
    return known, problems


def apply(spec: dict[str, Any], edits: Sequence[Edits], owner: int) -> None:
    """Change an OCI configuration as the devices want it.

    `owner` is the container's user id as far as the request has it: nodes that name none belong to it ("uid defaults to
    the container's user if it is not root", SPEC.md). FAILED_PRECONDITION names a device node that the host lacks.
    """
    if not edits:
        return
    process, linux = spec["process"], spec["linux"]
    for edit in edits:
        _set_variables(process, edit.env)
        for wanted in edit.nodes:
            node = _node(wanted, owner)
            linux["devices"] = [other for other in linux["devices"] if other["path"] != node["path"]] + [node]
            if node["type"] in ("b", "c", "u"):
                linux["resources"]["devices"].append(_rule(node, wanted.permissions))
        for stage, hook in edit.hooks:
            spec.setdefault("hooks", {}).setdefault(stage, []).append(hook)
        if edit.gids:
            groups = process.setdefault("user", {}).setdefault("additionalGids", [])
            groups += [gid for gid in dict.fromkeys(edit.gids) if gid not in groups]
        if edit.rdt:
            linux["intelRdt"] = linux.get("intelRdt", {}) | edit.rdt
    # Devices of one vendor like to mount the same libraries.
    volumes = {mount["destination"].rstrip("/"): mount for edit in edits for mount in edit.mounts}
    spec["mounts"] = mounts.arrange(spec["mounts"], list(volumes.values()))


def _set_variables(process: dict[str, Any], entries: Iterable[str]) -> None:
    merged: Mapping[str, str] = {entry.partition("=")[0]: entry for entry in (*process["env"], *entries)}
    process["env"] = list(merged.values())


def _node(wanted: DeviceNode, owner: int) -> dict[str, Any]:
    kind, major, minor, mode = wanted.kind, wanted.major, wanted.minor, wanted.file_mode
    if not kind or (kind != "p" and (major is None or minor is None)):
        try:
            found = os.stat(wanted.host_path)
        except OSError as error:
            raise failed_precondition(f"CDI device node {wanted.host_path}: {error.strerror}") from None
        on_host = TYPES.get(stat.S_IFMT(found.st_mode))
        if on_host is None or kind not in ("", on_host):
            raise failed_precondition(f"CDI device node {wanted.host_path} is not of the type {kind or 'b, c or p'}")
        kind, major, minor = on_host, os.major(found.st_rdev), os.minor(found.st_rdev)
        mode = stat.S_IMODE(found.st_mode) if mode is None else mode
    node = {"path": wanted.path, "type": kind, "uid": owner if wanted.uid is None else wanted.uid, "gid": wanted.gid or 0}
    if kind != "p":
        node |= {"major": major, "minor": minor}
    if mode is not None:
        node["fileMode"] = mode
    return node


def _rule(node: dict[str, Any], permissions: str) -> dict[str, Any]:
    kind = "c" if node["type"] == "u" else node["type"]
    return {"allow": True, "type": kind, "major": node["major"], "minor": node["minor"], "access": permissions}
