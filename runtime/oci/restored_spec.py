"""The OCI configuration of a container that is made out of a checkpoint.

CRIU brings back processes as they were: their credentials, capabilities, seccomp filters and mounts are the checkpoint's,
whatever the new configuration says. So the new one (of the request, for the new pod) takes from the old one what the process
is, and is refused where the process would keep more than the request grants, or would not get what the request promises.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any

from proto.errors import failed_precondition, invalid
from runtime.oci.json_fields import Fields

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

PROCESS = ("args", "env", "cwd", "terminal")
"""What a process is made of, as far as a configuration says it; `user` is compared once the shim has found it."""

PATHS = ("maskedPaths", "readonlyPaths")
CAPABILITIES = ("bounding", "effective", "permitted", "inheritable", "ambient")

SHARED = ("network", "pid")
"""Namespaces that CRIU either joins or makes anew, as they were when the checkpoint was made."""


def parse(document: Any) -> dict[str, Any]:
    """What of a stranger's configuration is looked at, complete and of the right types; else INVALID_ARGUMENT."""
    fields = Fields(document, "spec.dump")
    process = fields.inner("process")
    if process is None:
        raise invalid("spec.dump: process is missing")
    linux = fields.inner("linux") or Fields({}, "spec.dump: linux")
    root = fields.inner("root") or Fields({}, "spec.dump: root")
    user = process.inner("user") or Fields({}, "spec.dump: process: user")
    capabilities = process.inner("capabilities") or Fields({}, "spec.dump: process: capabilities")
    return {
        "process": {
            "args": list(process.texts("args")),
            "env": list(process.texts("env")),
            "cwd": process.required("cwd"),
            "terminal": process.flag("terminal") or False,
            "noNewPrivileges": process.flag("noNewPrivileges") or False,
            "apparmorProfile": process.text("apparmorProfile"),
            "selinuxLabel": process.text("selinuxLabel"),
            "user": {"uid": user.number("uid") or 0, "gid": user.number("gid") or 0},
            "capabilities": {name: capabilities.texts(name) for name in CAPABILITIES},
        },
        "root": {"readonly": root.flag("readonly") or False},
        "mounts": [
            {"destination": mount.required("destination"), "options": mount.texts("options")}
            for mount in fields.objects("mounts")
        ],
        "linux": {
            "maskedPaths": list(linux.texts("maskedPaths")),
            "readonlyPaths": list(linux.texts("readonlyPaths")),
            "seccomp": linux.inner("seccomp") is not None,
            "namespaces": [
                {"type": namespace.required("type"), "path": namespace.text("path")}
                for namespace in linux.objects("namespaces")
            ],
        },
    }


def merge(new: dict[str, Any], dumped: dict[str, Any], clients: Collection[str]) -> dict[str, Any]:
    """The configuration to restore with. `dumped` is parsed; `clients` are the container paths of the request's own mounts.

    Raises FAILED_PRECONDITION naming all that does not fit.
    """
    problems = [*_mounts(new, dumped, clients), *_namespaces(new, dumped), *_rights(new, dumped)]
    if dumped["process"]["terminal"] != bool(new["process"].get("terminal")):
        problems.append("one of the two has a terminal and the other none")
    if problems:
        raise failed_precondition(f"the checkpoint does not fit this container: {'; '.join(problems)}")
    process = new["process"] | {key: dumped["process"][key] for key in PROCESS}
    linux = new["linux"] | {key: dumped["linux"][key] for key in PATHS}
    kept = {_place(mount) for mount in dumped["mounts"]}
    # Mounts that only the new node would add (they are nobody's volumes) cannot be added to what CRIU restores.
    mounts = [mount for mount in new["mounts"] if _place(mount) in kept]
    return new | {"process": process, "linux": linux, "mounts": mounts}


def differences(new: dict[str, Any], dumped: dict[str, Any]) -> list[str]:
    """How the process that a request describes differs from the one in the checkpoint: names, for values can be secrets."""
    found = [key for key in ("args", "cwd") if new["process"][key] != dumped["process"][key]]
    before = dict(entry.partition("=")[::2] for entry in dumped["process"]["env"])
    wanted = dict(entry.partition("=")[::2] for entry in new["process"]["env"])
    changed = sorted(name for name, value in wanted.items() if before.get(name) != value and name != "HOSTNAME")
    return found + [f"variable {name}" for name in changed]


def _place(mount: dict[str, Any]) -> str:
    destination: str = mount["destination"]
    return posixpath.normpath("/" + destination.lstrip("/"))


def _read_only(options: Collection[str]) -> bool:
    return bool({"ro", "rro"}.intersection(options))


def _mounts(new: dict[str, Any], dumped: dict[str, Any], clients: Collection[str]) -> Iterator[str]:
    before = {_place(mount): mount for mount in dumped["mounts"]}
    now = {_place(mount): mount for mount in new["mounts"]}
    if missing := sorted(before.keys() - now.keys()):
        yield f"it had mounts at {', '.join(missing)}, which are not asked for"
    own = {_place({"destination": path}) for path in clients}
    if added := sorted(own - before.keys()):
        yield f"it had no mounts at {', '.join(added)}, which are asked for"
    for place in sorted(own & before.keys() & now.keys()):
        if _read_only(before[place]["options"]) != _read_only(now[place].get("options") or ()):
            yield f"the mount at {place} is read-only in one of the two"
    if dumped["root"]["readonly"] != bool(new["root"].get("readonly")):
        yield "the root file system is read-only in one of the two"


def _namespaces(new: dict[str, Any], dumped: dict[str, Any]) -> Iterator[str]:
    before, now = _joined(dumped), _joined(new)
    if "user" in before or "user" in now:
        yield "CRIU cannot restore into a pod with a user namespace"
    for kind in SHARED:
        if before.get(kind) != now.get(kind):
            yield f"its {kind} namespace was {_whose(before.get(kind))}, and is to be {_whose(now.get(kind))}"


def _joined(spec: dict[str, Any]) -> dict[str, bool]:
    """Kinds of namespaces, and whether the container joins one that is there."""
    return {namespace["type"]: bool(namespace.get("path")) for namespace in spec["linux"].get("namespaces") or ()}


def _whose(joined: bool | None) -> str:
    return "the node's" if joined is None else "shared" if joined else "the container's own"


def _rights(new: dict[str, Any], dumped: dict[str, Any]) -> Iterator[str]:
    """Where the process would keep more rights than the new configuration grants."""
    before, now = dumped["process"], new["process"]
    held = {name for names in before["capabilities"].values() for name in names}
    granted = {name for names in (now.get("capabilities") or {}).values() for name in names or ()}
    if more := sorted(held - granted):
        yield f"its processes have {', '.join(more)}"
    if now.get("noNewPrivileges") and not before["noNewPrivileges"]:
        yield "its processes may gain privileges"
    if new["linux"].get("seccomp") and not dumped["linux"]["seccomp"]:
        yield "its processes have no seccomp filter"
    for key, name in (("apparmorProfile", "AppArmor profile"), ("selinuxLabel", "SELinux label")):
        if before[key] != (now.get(key) or ""):
            yield f"its {name} was {before[key] or 'none'}, and is to be {now.get(key) or 'none'}"
    for key, name in (("maskedPaths", "masks"), ("readonlyPaths", "protects")):
        if open_paths := sorted(set(new["linux"].get(key) or ()) - set(dumped["linux"][key])):
            yield f"it {name} fewer paths: {', '.join(open_paths)} not"
