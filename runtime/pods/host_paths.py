"""Host paths that a pod mounts are looked at by a helper process that can be killed.

They can lie on a dead NFS, where stat(2) never returns. The daemon itself never touches them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kernel import mounts
from proto.errors import Code, CrispError, invalid
from runtime import limits
from runtime.oci.mounts import PRESERVED, Source

if TYPE_CHECKING:
    from runtime.shims.fork_server import ForkServer


async def find_sources(fork_server: ForkServer, paths: Sequence[str]) -> dict[str, Source]:
    """What stands at each host path; one that is missing becomes a directory, which is what the kubelet expects.

    Raises DEADLINE_EXCEEDED naming the paths if the helper gets no answer from the file system.
    """
    if not paths:
        return {}
    for path in paths:
        if not path.startswith("/"):
            raise invalid(f"mount: host path {path!r} is not absolute")
    try:
        reply = await fork_server.run_job(
            "shim.host_paths:inspect",
            {"paths": [{"path": path, "create": True} for path in paths]},
            timeout=limits.HOST_PATH_SECONDS,
        )
    except CrispError as error:
        if error.code is Code.DEADLINE_EXCEEDED:
            raise CrispError(
                Code.DEADLINE_EXCEEDED,
                f"a volume's file system did not answer for {limits.HOST_PATH_SECONDS:.0f} s: one of {', '.join(paths)}",
            ) from None
        raise
    table = mounts.mountinfo()
    return {path: _source(found, table) for path, found in zip(paths, reply["paths"], strict=True)}


def _source(found: dict[str, Any], table: list[mounts.Mount]) -> Source:
    mount = mounts.holding(found["path"], table)
    return Source(
        path=found["path"],
        directory=found["kind"] == "directory",
        propagation=mount.propagation,
        flags=tuple(flag for flag in PRESERVED if flag.encode() in mount.options),
        mount_point=os.fsdecode(mount.mount_point),
    )
