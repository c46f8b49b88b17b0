"""Job: touch paths of users on the host (sources of mounts) where a dead network file system cannot hold the daemon up.

The daemon gives the job a deadline and kills it; a process in an uninterruptible wait is then the kernel's alone.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from proto.errors import Code, CrispError

_KINDS = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def inspect(args: dict[str, Any], _fds: list[int], _report: Any) -> dict[str, Any]:
    """Look at host paths; {"paths": [{"path": real path, "kind": KIND, "device": [major, minor]}, ...]}, in order.

    `args`: paths: [{"path": PATH, "create": bool}, ...]; a path that is missing is made a directory (with `create`) or is
    NOT_FOUND.
    """
    return {"paths": [_inspect(entry["path"], bool(entry.get("create"))) for entry in args["paths"]]}


def _inspect(path: str, create: bool) -> dict[str, Any]:
    # The runtime resolves symbolic links again when it mounts; mountinfo knows real paths only.
    real = os.path.realpath(path)
    try:
        found = os.stat(real)
    except FileNotFoundError:
        if not create:
            raise CrispError(Code.NOT_FOUND, f"{path} does not exist on the host") from None
        os.makedirs(real, mode=0o755, exist_ok=True)
        found = os.stat(real)
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "other")
    return {"path": real, "kind": kind, "device": [os.major(found.st_rdev), os.minor(found.st_rdev)]}
