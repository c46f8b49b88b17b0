"""The container's root file system, mounted where only the container can see it.

The child that becomes the OCI runtime makes a mount namespace and mounts there; the runtime makes the container's own
namespace from that one. The mount then lives exactly as long as the container. Whatever else was mounted keeps its
propagation, or volumes with Bidirectional propagation would not reach the host; `<bundle>/..` is a private mount, which is
what keeps the rootfs from propagating.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from kernel import mounts, syscalls
from kernel.cgroups import ROOT as CGROUP_ROOT


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


def mount(bundle: str, rootfs: dict[str, Any]) -> str:
    """Mount the described root at `<bundle>/rootfs`, in the present mount namespace; its path.

    `rootfs` is {"bind": DIR, "readonly": bool} or {"lowerdirs": [topmost, ...], "upper": DIR, "work": DIR,
    "volatile": bool, "userns": FILE, "label": LABEL}; "userns" names a pinned user namespace whose mappings the image's
    files get, "label" is their SELinux label.
    """
    target = os.path.join(bundle, "rootfs")
    os.makedirs(target, exist_ok=True)
    if "bind" in rootfs:
        mounts.bind(rootfs["bind"], target, readonly=bool(rootfs.get("readonly")), recursive=True)
        return target
    lower = [str(directory) for directory in rootfs["lowerdirs"]]
    if rootfs.get("userns"):
        lower = list(_mapped(bundle, lower, rootfs["userns"]))
    mounts.overlay(
        target,
        lower,
        str(rootfs["upper"]),
        str(rootfs["work"]),
        volatile=bool(rootfs.get("volatile")),
        label=str(rootfs.get("label", "")),
    )
    return target


def _mapped(bundle: str, lower: list[str], userns: str) -> Iterator[str]:
    """Bind each layer with its ids mapped as in `userns`; the places of these mounts, which overlay can take."""
    user_fd = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    base = os.path.join(bundle, "layers")
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


def make_directories(root_fd: int, paths: list[str]) -> None:
    """`mkdir -p` inside the root file system open at `root_fd`; symbolic links are followed within it."""
    for path in paths:
        done = ""
        parent = os.dup(root_fd)
        try:
            for part in [part for part in path.split("/") if part not in ("", ".", "..")]:
                done = f"{done}/{part}"
                child = _open_or_make(root_fd, parent, done, part)
                os.close(parent)
                parent = child
        finally:
            os.close(parent)


def _open_or_make(root_fd: int, parent: int, path: str, name: str) -> int:
    """The directory at `path`, made as `name` in its opened `parent` if it is missing."""
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return syscalls.openat2(root_fd, path, flags, syscalls.RESOLVE_IN_ROOT)
    except FileNotFoundError:
        os.mkdir(name, 0o755, dir_fd=parent)
        return syscalls.openat2(root_fd, path, flags, syscalls.RESOLVE_IN_ROOT)
