"""The container's root file system, mounted where only the container can see it.

The child that becomes the OCI runtime makes a mount namespace and mounts there; the runtime makes the container's own
namespace from that one. The mount then lives exactly as long as the container. Whatever else was mounted keeps its
propagation, or volumes with Bidirectional propagation would not reach the host; `<bundle>/..` is a private mount, which is
what keeps the rootfs from propagating.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from typing import Any

from kernel import mounts, syscalls
from kernel.cgroups import ROOT as CGROUP_ROOT
from proto.errors import Code, CrispError, failed_precondition
from shim import layer_mounts

_FILES = "files"  # below the bundle
MAX_LINKS = 40  # as the kernel follows in one path (MAXSYMLINKS)


def enter_private_namespace(detach_unified: str = "") -> None:
    """Move this process into a mount namespace of its own.

    `detach_unified` is the cgroup2 mount of a hybrid host, which crun 1.8 refuses to see: it is unmounted in the new
    namespace, with what it lies in made private first so that the host keeps it.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    if detach_unified:
        mounts.make_private(CGROUP_ROOT)
        mounts.make_private(detach_unified)
        mounts.detach(detach_unified)


def open_layers(fields: dict[str, Any]) -> dict[str, int]:
    """The layers that are files, of the root file system and of image volumes in the fields of `create`, by their paths:
    detached mounts, for `attach_layers`. To be called before the private namespace is entered.
    """
    place = str(fields["rootfs"].get("layer_mounts", ""))
    found = layer_mounts.clones(place, fields["rootfs"].get("lowerdirs", ()))
    volumes = {layer for volume in fields.get("volumes", ()) for layer in volume["lowerdirs"]}
    try:
        return {**found, **layer_mounts.clones(place, volumes - found.keys())}
    except OSError as error:
        raise CrispError(Code.INVALID_ARGUMENT, f"ImageVolumeMountFailed: {error.strerror}: {error.filename}") from None


def attach_layers(bundle: str, fields: dict[str, Any], layers: dict[str, int]) -> dict[str, Any]:
    """Mounts them in the present mount namespace; the fields with their mounts in place of their files."""
    if not layers:
        return fields
    places = layer_mounts.attach(os.path.join(bundle, _FILES), layers)
    root, *volumes = (
        {**part, "lowerdirs": [places.get(layer, layer) for layer in part.get("lowerdirs", ())]}
        for part in (fields["rootfs"], *fields.get("volumes", ()))
    )
    return {**fields, "rootfs": root, "volumes": volumes}


def detach_layers(bundle: str, layers: dict[str, int]) -> None:
    """Ends `attach_layers` when all is mounted: overlays have clones of their own, and the OCI runtime less to copy."""
    if layers:
        mounts.detach(os.path.join(bundle, _FILES))


def mount(bundle: str, rootfs: dict[str, Any]) -> str:
    """Mount the described root at `<bundle>/rootfs`, in the present mount namespace; its path.

    `rootfs` is {"bind": DIR, "readonly": bool} or {"lowerdirs": [topmost, ...], "layer_mounts": PLACE, "upper": DIR,
    "work": DIR, "volatile": bool, "userns": FILE, "label": LABEL}; "layer_mounts" is where layers that are files are
    mounted (layer_mounts.py), "userns" names a pinned user namespace whose mappings the image's files get, "label" is their
    SELinux label.
    """
    target = os.path.join(bundle, "rootfs")
    os.makedirs(target, exist_ok=True)
    if "bind" in rootfs:
        mounts.bind(rootfs["bind"], target, readonly=bool(rootfs.get("readonly")), recursive=True)
        return target
    lower = [str(directory) for directory in rootfs["lowerdirs"]]
    if rootfs.get("userns"):
        lower = list(mapped(os.path.join(bundle, "layers"), lower, rootfs["userns"]))
    mounts.overlay(
        target,
        lower,
        str(rootfs["upper"]),
        str(rootfs["work"]),
        volatile=bool(rootfs.get("volatile")),
        label=str(rootfs.get("label", "")),
    )
    return target


def mapped(base: str, lower: list[str], userns: str) -> Iterator[str]:
    """Bind each layer below `base`, its ids mapped as in `userns`; the places of these mounts, which overlay can take."""
    user_fd = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for index, directory in enumerate(lower):
            place = os.path.join(base, str(index))
            os.makedirs(place, exist_ok=True)
            tree = syscalls.open_tree(directory, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)
            try:
                syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_IDMAP, userns_fd=user_fd)
                syscalls.move_mount(tree, place)
            finally:
                os.close(tree)
            yield place
    finally:
        os.close(user_fd)


def make_directories(root_fd: int, paths: list[str], owner: tuple[int, int]) -> None:
    """`mkdir -p` inside the root file system open at `root_fd`, for `owner`; symbolic links are followed within it.

    A link that leads to nothing gets what it names: `/var/run -> /run` in an image without /run. FAILED_PRECONDITION for
    links that lead in a circle, and where a file is in the way.
    """
    for path in paths:
        os.close(_directory(root_fd, path, owner, MAX_LINKS))


def make_link_targets(root_fd: int, path: str, source: str, owner: tuple[int, int]) -> None:
    """Where `path` leads through a symbolic link to nothing, make what the link names; the OCI runtime makes the rest.

    What the last link names is made of the same kind as `source`, which is to be mounted there; all of it is `owner`'s.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for count in range(1, len(parts) + 1):
        here = "/".join(parts[:count])
        try:
            os.close(syscalls.openat2(root_fd, here, os.O_PATH, syscalls.RESOLVE_IN_ROOT))
        except FileNotFoundError:
            target = _link(root_fd, here)
            if target is None:
                return  # nothing is there
            if count < len(parts) or os.path.isdir(source):
                make_directories(root_fd, [target], owner)
            else:
                _make_file(root_fd, target, owner, MAX_LINKS)
        except OSError:
            return  # a file in the way, links in a circle: the runtime says it


def _directory(root_fd: int, path: str, owner: tuple[int, int], links: int) -> int:
    """The directory at `path`, made if it is missing, opened."""
    flags = os.O_PATH | os.O_DIRECTORY
    done = ""
    parent = os.dup(root_fd)
    try:
        for part in [part for part in posixpath.normpath("/" + path).split("/") if part]:
            done = f"{done}/{part}"
            try:
                child = syscalls.openat2(root_fd, done, flags, syscalls.RESOLVE_IN_ROOT)
            except FileNotFoundError:
                if (target := _link(root_fd, done)) is None:
                    os.mkdir(part, 0o755, dir_fd=parent)
                    os.chown(part, *owner, dir_fd=parent, follow_symlinks=False)
                elif links:
                    os.close(_directory(root_fd, target, owner, links - 1))
                else:
                    raise failed_precondition(f"symbolic links of the image lead in a circle at {done}") from None
                child = syscalls.openat2(root_fd, done, flags, syscalls.RESOLVE_IN_ROOT)
            except OSError as error:
                raise failed_precondition(f"cannot make directory {path} in the image: {done}: {error.strerror}") from None
            os.close(parent)
            parent = child
        return os.dup(parent)
    finally:
        os.close(parent)


def _link(root_fd: int, path: str) -> str | None:
    """Where the symbolic link at `path` leads, as a path in the root without links before its end; None if it is none."""
    directory, _, name = path.rpartition("/")
    try:
        parent = syscalls.openat2(root_fd, directory or "/", os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_IN_ROOT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        target = os.readlink(name, dir_fd=parent)
        root, real = (os.readlink(f"/proc/self/fd/{fd}") for fd in (root_fd, parent))
    except OSError:
        return None
    finally:
        os.close(parent)
    return posixpath.normpath(posixpath.join("/", real.removeprefix(root.rstrip("/")), target))


def _make_file(root_fd: int, path: str, owner: tuple[int, int], links: int) -> None:
    """An empty file at `path`, for a file to be mounted over it; where a link is, at what it names."""
    if links and (target := _link(root_fd, path)) is not None:
        _make_file(root_fd, target, owner, links - 1)
        return
    directory, _, name = path.rpartition("/")
    parent = _directory(root_fd, directory, owner, MAX_LINKS)
    try:
        file = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent)
        os.fchown(file, *owner)
        os.close(file)
    finally:
        os.close(parent)
