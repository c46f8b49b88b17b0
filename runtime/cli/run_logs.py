"""The logs of pods that `crisp run` has made, and what its runs that were killed have left.

    /var/log/crisp-run/<uid of the pod>/     locked by the `crisp run` that makes it, until its end, and by who waits for it
        socket                               of the daemon that has the pod; written under the lock
        <container>.log

The pod itself is removed by the daemon at its end, or by whoever has kept it; then nobody needs its logs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.host import followers

if TYPE_CHECKING:
    from runtime.client import Client

RUN_LOGS: Final = Path("/var/log/crisp-run")
_SOCKET: Final = "socket"


def directory(uid: str) -> Path:
    """Where `crisp run` keeps the logs of its pod with this uid, which need not be one of its pods."""
    return RUN_LOGS / (uid if uid.isalnum() else "none")


def rootfs_image(uid: str) -> str:
    """The name of the image that is made of a pod's --rootfs."""
    return f"localhost/rootfs-{uid}:run"


def make(uid: str, socket_path: str) -> Path:
    """The directory for a new pod, which is ours until this process ends."""
    place = directory(uid)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    followers.follow(str(place))
    (place / _SOCKET).write_text(os.path.abspath(socket_path))
    return place


def discard(uid: str) -> None:
    """Remove the directory, if there is one."""
    shutil.rmtree(directory(uid), ignore_errors=True)


def sweep(client: Client, socket_path: str) -> None:
    """Remove what is left of this daemon's pods that are gone, and whose makers are."""
    from proto import api_pb2 as cri  # noqa: PLC0415

    ours = os.path.abspath(socket_path)
    left = {place.name: lock for place in _places() if _socket(place) == ours and (lock := _lock(place)) is not None}
    if not left:
        return
    there = {pod.metadata.uid for pod in client.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items}
    for uid, lock in left.items():
        if uid not in there:
            client.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=rootfs_image(uid))))
            discard(uid)
        os.close(lock)


def _places() -> list[Path]:
    try:
        return sorted(RUN_LOGS.iterdir())
    except OSError:
        return []


def _socket(place: Path) -> str:
    with suppress(OSError):
        return (place / _SOCKET).read_text()
    return ""


def _lock(place: Path) -> int | None:
    """Held by the descriptor, which is closed by whoever has it; None if somebody follows the pod."""
    with suppress(OSError):
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    return None
