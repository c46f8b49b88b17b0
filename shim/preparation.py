"""What the child that becomes `crun create` does before: mount the root, resolve the user, write config.json.

It is done there and not in the shim, because the mount namespace in which the root is mounted is the child's own, because a
mount that hangs then hangs a process that can be killed, and because the memory it takes ends with the exec.

    child -> shim, in a memory file: {"user": {uid, gid, groups}, "command": PROGRAM, "directory": PATH} or
                                     {"error": {code, message}}
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from proto import shim_protocol
from proto.errors import Code, CrispError
from proto.shim_protocol import Message
from shim import idmapped_volumes, image_volumes, inheritance, rootfs, user_lookup

MAX_RESULT = 1 << 20  # bytes


class Prepared(NamedTuple):
    """What the child found out."""

    user: Message
    """uid, gid, groups."""
    command: str
    """The program that the container is to run, for messages."""
    directory: str
    """Where it is to run, for messages."""
    own_end: bool
    """Whether there is more to its `delete` than a removal: hooks for that, a class of caches."""
    own_start: bool
    """Whether there is more to its `start` than to let its process go on: hooks for that."""


def prepare(bundle: str, fields: Message, detach_unified: str, result_fd: int) -> None:
    """Run in the child. On failure the result says why, and the child must not go on: SystemExit."""
    try:
        with open(os.path.join(bundle, "spec.json"), "rb") as file:
            spec = json.loads(file.read())
        layers = rootfs.open_layers(fields)
        rootfs.enter_private_namespace(detach_unified)
        fields = rootfs.attach_layers(bundle, fields, layers)
        user = _furnish_root(bundle, fields, spec)
        rootfs.detach_layers(bundle, layers)
        _write_config(bundle, spec, user)
        inheritance.take_oom_score(inheritance.oom_score(spec["process"]))
        hooks = spec.get("hooks") or {}
        result: Message = {
            "user": {"uid": user.uid, "gid": user.gid, "groups": user.groups},
            "command": str(spec["process"]["args"][0]),
            "directory": str(spec["process"]["cwd"]),
            "own_end": bool(hooks.get("poststop") or "intelRdt" in spec["linux"]),
            "own_start": bool(hooks.get("poststart")),
        }
    except CrispError as error:
        result = {"error": shim_protocol.error_fields(error.code, error.message)}
    except OSError as error:
        result = {"error": shim_protocol.error_fields(Code.INTERNAL, f"cannot prepare the container's root: {error}")}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        # Nothing of the document: there are secrets in it.
        result = {"error": shim_protocol.error_fields(Code.INTERNAL, f"{bundle}/spec.json: {type(error).__name__}")}
    os.pwrite(result_fd, shim_protocol.encode(result), 0)
    if "error" in result:
        raise SystemExit


def _furnish_root(bundle: str, fields: Message, spec: dict[str, Any]) -> user_lookup.User:
    """Mount the root and what belongs into it; the user that its /etc/passwd makes."""
    root = rootfs.mount(bundle, fields["rootfs"])
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = _root_of(spec)
        rootfs.make_directories(root_fd, fields.get("mkdirs", []), owner)
        image_volumes.mount_all(bundle, fields.get("volumes", []))
        if fields["rootfs"].get("userns"):
            idmapped_volumes.map_all(bundle, spec, fields["rootfs"]["userns"])
        for mount in spec["mounts"]:
            if mount["type"] == "bind":
                rootfs.make_link_targets(root_fd, mount["destination"], mount["source"], owner)
        wanted = fields["user"]
        return user_lookup.resolve(
            root_fd,
            wanted.get("user", ""),
            wanted.get("group"),
            wanted.get("supplemental", ()),
            wanted.get("policy", "merge"),
        )
    finally:
        os.close(root_fd)


def _root_of(spec: dict[str, Any]) -> tuple[int, int]:
    """The ids on the host of who is root in the container: what is made for it belongs to that one."""
    uids, gids = (spec["linux"].get(name) or [{"hostID": 0}] for name in ("uidMappings", "gidMappings"))
    return uids[0]["hostID"], gids[0]["hostID"]


def _write_config(bundle: str, spec: dict[str, Any], user: user_lookup.User) -> None:
    """Write the OCI configuration with the user in it, and the home directory: not every runtime looks for one."""
    if not any(entry.startswith("HOME=") for entry in spec["process"]["env"]):
        spec["process"]["env"].append(f"HOME={user.home}")
    spec["process"].setdefault("user", {}).update({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups})
    path = os.path.join(bundle, "config.json")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(json.dumps(spec).encode())


def new_result() -> int:
    """Where the child says what it has found: a file, for a pipe would hold up who says more than it holds."""
    return os.memfd_create("crisp-prepared", os.MFD_CLOEXEC)


def read_result(result_fd: int) -> Prepared | None:
    """The child's result, once the child has ended; its error raised; None if it died without one."""
    message = shim_protocol.decode(os.pread(result_fd, MAX_RESULT, 0))
    if message is None:
        return None
    if "error" in message:
        raise shim_protocol.error_from(message["error"])
    return Prepared(message["user"], message["command"], message["directory"], message["own_end"], message["own_start"])
