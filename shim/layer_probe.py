"""Job: find out by trying whether layers can be files here (layer_mounts.py).

The kernel has to have EROFS, to mount it from a file (Linux 6.12, CONFIG_EROFS_FS_BACKED_BY_FILE), and to map the ids of
such a mount; and the file system on which the layers lie has to be one that it can read such a file from, past the page
cache: Linux before 7.0 takes a read through the page cache that SIGKILL has cut short for a whole one, and all who share the
pages find zeros.
"""

from __future__ import annotations

import base64
import errno
import os
import re
from contextlib import suppress
from typing import Any

from kernel import lsm, mounts, namespaces, syscalls
from kernel.descriptors import write_all

NAME = "hello"
TEXT = b"crisp\n"
"""What the image has to have: one file."""
_OPENERS_RIGHTS = (6, 18)
_FIRST_ID, _ID_COUNT = 1 << 20, 1 << 16
_WHY = {
    errno.ENODEV: "this kernel has no EROFS",
    errno.ENOTBLK: "EROFS is not mounted from a file here: that takes Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, and a "
    "file system on a disk",
    errno.ENOSYS: "this kernel has no fsopen",
}


def main(args: dict[str, Any], _fds: list[int], _report: Any) -> dict[str, Any]:
    """`args`: directory (of the layers), image (base64). Returns {"error": why layers cannot be files, or ""}."""
    return {"error": probe(args["directory"], base64.b64decode(args["image"]))}


def probe(directory: str, image: bytes) -> str:
    """Why a layer in `directory` cannot be a file, or "". For a process with one thread."""
    if lsm.selinux_enabled() and release() < _OPENERS_RIGHTS:
        return "with SELinux, Linux before 6.18 reads a layer's file with the rights of the container"
    path = os.path.join(directory, f"new-{os.urandom(8).hex()}.erofs")
    try:
        with open(path, "xb") as file:
            write_all(file.fileno(), image)
        return _try(path, NAME)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and (layer := _a_layer(directory)):
            return _try(layer)
        return f"cannot write to {directory}: {error.strerror}"
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _a_layer(directory: str) -> str:
    """One that is there, for a disk that is full: it is not to decide what layers are made as once there is room."""
    names = (name for name in os.listdir(directory) if name.endswith(".erofs") and not name.startswith(("new-", "old-")))
    return os.path.join(directory, name) if (name := min(names, default="")) else ""


def release() -> tuple[int, ...]:
    """Of the kernel: its first two numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])


def _try(path: str, file: str = "") -> str:
    """`file` has to be in it, with that text; of a layer of somebody's the root has to be there."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        return f"its file system cannot read past the page cache: {error.strerror}"
    try:
        mount = mounts.erofs(path)
    except OSError as error:
        return _WHY.get(error.errno or 0, f"cannot mount one from its file system: {error.strerror}")
    try:
        if file and _read(mount, file) != TEXT:
            return "what was read of it is not what was written"
        return _map(mount)
    except OSError as error:
        return f"cannot read one: {error.strerror}"
    finally:
        os.close(mount)


def _read(mount: int, file: str) -> bytes:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=mount)
    try:
        return os.read(descriptor, 2 * len(TEXT))
    finally:
        os.close(descriptor)


def _map(mount: int) -> str:
    """Why its ids cannot be mapped. On a host without user namespaces nobody will want that."""
    user = _user_namespace()
    if user < 0:
        return ""
    try:
        syscalls.mount_setattr(mount, syscalls.MOUNT_ATTR_IDMAP, userns_fd=user)
    except OSError as error:
        return f"the ids of one cannot be mapped: {error.strerror}"
    else:
        return ""
    finally:
        os.close(user)


def _user_namespace() -> int:
    """A descriptor of a user namespace with a mapping, -1 where there is none to be had."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(ready[1], b"1")
            os.close(go[1])
            os.read(go[0], 1)
        finally:
            os._exit(0)
    try:
        os.close(ready[1])
        if not os.read(ready[0], 1):
            return -1
        mapping = [namespaces.IdMap(0, _FIRST_ID, _ID_COUNT)]
        namespaces.write_mappings(pid, mapping, mapping)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for descriptor in (ready[0], *go):
            os.close(descriptor)
        with suppress(ChildProcessError):  # where SIGCHLD is ignored
            os.waitpid(pid, 0)
