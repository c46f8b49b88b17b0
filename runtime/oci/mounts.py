"""The `mounts` of the OCI configuration, in the order in which the OCI runtime makes them.

A mount of the client's takes the place of a default one with the same destination. Mounts are sorted by depth, so that
/a/b is made after /a whatever the client's order; equal depth keeps the client's order.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from proto import api_pb2 as cri
from proto.errors import Code, CrispError, failed_precondition, invalid
from runtime.oci import user_namespaces
from runtime.oci.resources import withheld

if TYPE_CHECKING:
    from pathlib import Path

PROPAGATION: Final = {
    cri.PROPAGATION_PRIVATE: "rprivate",
    cri.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    cri.PROPAGATION_BIDIRECTIONAL: "rshared",
}

NAMES: Final = {"rslave": "HostToContainer", "rshared": "Bidirectional"}

PRESERVED: Final = ("nosuid", "nodev", "noexec", "ro")
"""Flags of a mount that a bind of it keeps."""

CLIENT_OPTIONS: Final = frozenset(("noexec", "nodev", "nosuid"))
"""What Mount.mount_options may hold (Kubernetes 1.37)."""


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a bind mount, as the helper found it on the host."""

    path: str
    """Symbolic links resolved."""
    directory: bool
    propagation: str
    """Of the mount it lies on: shared, slave or private."""
    flags: tuple[str, ...] = ()
    """Of the mount it lies on, those in PRESERVED: crun's `rw` takes from a bind all that it does not name."""
    mount_point: str = ""
    """Of the mount it lies on, for messages."""


def default_mounts(*, privileged: bool, cgroup_v2: bool, mqueue: bool) -> list[dict[str, Any]]:
    """Kernel file systems that every container sees."""
    access = "rw" if privileged else "ro"
    mounts = [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", access),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", access),
    ]
    if mqueue:
        mounts.insert(3, _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"))
    if not cgroup_v2 and privileged:
        mounts[-1]["options"].remove("relatime")
    return mounts


def host_view_mounts(*, network: bool, ipc: bool) -> dict[str, dict[str, Any]]:
    """What replaces a default mount when the pod uses the node's namespaces, where the kernel would refuse a new one."""
    changed = {}
    if network:
        changed["/sys"] = _mount("/sys", "/sys", "bind", "rbind", "nosuid", "noexec", "nodev", "ro")
    if ipc:
        changed["/dev/mqueue"] = _mount("/dev/mqueue", "/dev/mqueue", "bind", "rbind", "nosuid", "noexec", "nodev")
    return changed


def pod_files(directory: Path, *, host_ipc: bool, readonly: bool) -> list[dict[str, Any]]:
    """resolv.conf, hosts and hostname of the pod, and its /dev/shm."""
    access = "ro" if readonly else "rw"
    files = [
        _mount(f"/etc/{name}", str(directory / name), "bind", "rbind", "rprivate", access)
        for name in ("hosts", "hostname", "resolv.conf")
    ]
    shm = "/dev/shm" if host_ipc else str(directory / "shm")
    return [*files, _mount("/dev/shm", shm, "bind", "rbind", "rprivate", "nosuid", "nodev", "noexec", "rw")]


def client_mount(mount: cri.Mount, source: Source, *, rro: bool) -> dict[str, Any]:
    """One mount of the request.

    Raises INVALID_ARGUMENT for what contradicts itself, and `RROUnsupported` if the handler has no recursive read-only.
    """
    if not mount.container_path.startswith("/"):
        raise invalid(f"mount of {mount.host_path}: container path {mount.container_path!r} is not absolute")
    destination = posixpath.normpath(mount.container_path)
    if destination.strip("/") == "":
        raise invalid(f"mount of {mount.host_path}: nothing can be mounted over the container's root")
    options = ["rbind", _propagation(mount, source), *(flag for flag in source.flags if flag != "ro")]
    if mount.recursive_read_only:
        if not mount.readonly:
            raise invalid(f"mount {mount.container_path}: recursive_read_only needs readonly")
        if mount.propagation != cri.PROPAGATION_PRIVATE:
            raise invalid(f"mount {mount.container_path}: recursive_read_only needs private propagation")
        if not rro:
            raise CrispError(
                Code.FAILED_PRECONDITION,
                "RROUnsupported: the runtime handler cannot make recursive read-only mounts",
            )
        options.append("rro")
    options.append("ro" if mount.readonly or "ro" in source.flags else "rw")
    for option in mount.mount_options:
        if option not in CLIENT_OPTIONS:
            raise invalid(f"mount {mount.container_path}: unknown option {option!r}; known: noexec, nodev, nosuid")
        if option not in options:
            options.append(option)
    # Images are mapped where they are mounted, layer by layer.
    mapped = {} if mount.image.image else user_namespaces.mount_options(mount)
    if mapped:
        options.append("idmap")
    return {**_mount(destination, source.path, "bind", *options), **mapped}


def _propagation(mount: cri.Mount, source: Source) -> str:
    wanted = PROPAGATION.get(mount.propagation)
    if wanted is None:
        raise invalid(f"mount {mount.container_path}: unknown propagation {mount.propagation}")
    needed = {"rshared": ("shared",), "rslave": ("shared", "slave")}.get(wanted, ())
    if not needed or source.propagation in needed:
        return wanted
    if source.mount_point != "/":
        raise failed_precondition(
            f"mount {mount.container_path}: path {mount.host_path} is mounted on {source.mount_point}, but it is not a "
            f"{' or '.join(needed)} mount"
        )
    # Test machines and some container hosts have a private root, and no pod with a CSI driver would start there.
    withheld(f"{NAMES[wanted]} volumes: the host's root is a private mount")
    return "rslave" if source.propagation == "slave" else "rprivate"


def arrange(defaults: list[dict[str, Any]], clients: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All mounts in order: see the module's docstring."""
    taken = {mount["destination"] for mount in clients}
    duplicates = len(clients) - len(taken)
    if duplicates:
        seen: set[str] = set()
        for mount in clients:
            if mount["destination"] in seen:
                raise invalid(f"two mounts with the container path {mount['destination']}")
            seen.add(mount["destination"])
    merged = [mount for mount in defaults if mount["destination"] not in taken] + clients
    return sorted(merged, key=lambda mount: _depth(mount["destination"]))


def _depth(destination: str) -> int:
    return 0 if destination == "/" else destination.rstrip("/").count("/")


def _mount(destination: str, source: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}
