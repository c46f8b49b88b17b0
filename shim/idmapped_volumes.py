"""Volumes of pods with a user namespace: mapped here, so that no OCI runtime has to know how.

<bundle>/mapped/N     the source of the configuration's mount N, its ids mapped as in the pod's user namespace

Debian's runc passes mappings of mounts over in silence, and crun 1.8 cannot map where the container joins a PID namespace.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from kernel import syscalls
from proto.errors import failed_precondition


def map_all(bundle: str, spec: dict[str, Any], userns: str) -> None:
    """Mount the sources that have the pod's own mappings, in the present mount namespace, and have `spec` name them.

    `userns` is the pod's pinned user namespace; a mount with other mappings than its is left to the OCI runtime.
    """
    linux = spec["linux"]
    pods = (linux.get("uidMappings"), linux.get("gidMappings"))
    user_fd = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for index, mount in enumerate(spec["mounts"]):
            if "uidMappings" in mount and (mount["uidMappings"], mount["gidMappings"]) == pods:
                place = os.path.join(bundle, "mapped", str(index))
                _map(mount["source"], place, user_fd)
                mount["source"] = place
                mount["options"] = [option for option in mount["options"] if option != "idmap"]
                del mount["uidMappings"], mount["gidMappings"]
    finally:
        os.close(user_fd)


def _map(source: str, place: str, user_fd: int) -> None:
    """Put a copy of the mount tree at `source` to `place`; what is mounted below it keeps its own ids, as with `idmap`."""
    tree = syscalls.open_tree(source, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_RECURSIVE)
    try:
        try:
            syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_IDMAP, userns_fd=user_fd)
        except OSError as error:  # EINVAL: a network file system, FUSE, overlay, ...; EPERM: it is mapped already
            raise failed_precondition(
                f"volume {source}: its file system cannot give files the ids of a user namespace: {error.strerror}"
            ) from None
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.makedirs(place, exist_ok=True)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        syscalls.move_mount(tree, place)
    finally:
        os.close(tree)
