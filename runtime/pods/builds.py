"""Builds: what `crisp build` has of the daemon for as long as its call HoldBuild lasts, and no longer.

    <root>/builds/<id>/scratch           the build's own directory
    <root>/builds/<id>/mounts/N/         upper and work directory of a writable mount
    <state>/builds/<id>/                 a private mount; mounts/N/root is what is mounted, memory/ the build's own tmpfs
    <root>/build-cache/<name>/           a directory of RUN --mount=type=cache: `data`, and `lock`, which its users hold

A build's containers are ordinary ones in pods with the label `crisp.build`, whose value is the build's id. No list and no
event shows them unless its label selector names that label: a kubelet ends pods that it does not know. The label means
something for a living build alone, and with logs in that build's own directory: what a RUN runs can read the id in
/proc/self/mountinfo, and a pod's author gives it labels, but the kubelet says where its logs go. On all other pods it is a
label like any other.

The directory in <root> is made first and removed last, so that the next daemon finds what one that was killed has left.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from imagesvc.references import is_step
from imagesvc.store.images import ARTIFACT
from kernel import modes, mounts, removal, syscalls
from proto.errors import Code, CrispError, failed_precondition, not_found
from runtime import limits
from runtime.pods import sandbox_stop, writable_layer
from runtime.pods.objects import BUILD_LABEL, Lease

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from imagesvc.store.images import Image
    from proto import api_pb2 as cri
    from runtime.pods.node import Node

_ID: Final = re.compile("build-[0-9a-f]{32}")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Left:
    """What builds have left to be quick the next time: steps, directories, bytes of disk."""

    steps: int
    caches: int
    bytes: int


def of_pod(node: Node, config: cri.PodSandboxConfig) -> str:
    """The build whose pod this is to be; empty for all other pods. FAILED_PRECONDITION if that build has ended."""
    build = _named(node, config)
    lease = node.builds.get(build)
    if build and (lease is None or lease.ended):
        raise failed_precondition(f"{build} has ended")
    return build


def _named(node: Node, config: cri.PodSandboxConfig) -> str:
    """The build that a pod's label names, if its logs are with the build's own files."""
    build = config.labels.get(BUILD_LABEL, "")
    if not _ID.fullmatch(build):
        return ""
    logs, own = config.log_directory, str(scratch(node, build))
    return build if logs.startswith(f"{own}/") and os.path.normpath(logs) == logs else ""


async def begin(node: Node) -> Lease:
    """A new build; `end` has to follow."""
    lease = Lease(f"build-{secrets.token_hex(16)}")
    node.builds[lease.id] = lease
    try:
        await asyncio.get_running_loop().run_in_executor(node.blocking, _make, node, lease.id)
    except BaseException:
        await end(node, lease)
        raise
    return lease


def _make(node: Node, build: str) -> None:
    for parent in (node.paths.builds, node.paths.build_mounts, node.paths.build_caches):
        modes.own(parent, 0o700)
    (node.paths.builds / build).mkdir(mode=0o700)
    scratch(node, build).mkdir(mode=0o700)
    (node.paths.build_mounts / build).mkdir(mode=0o700)
    mounts.ensure_private_mount(str(node.paths.build_mounts / build))
    memory(node, build).mkdir(mode=0o700)
    # Whatever <state> lies on; and scripts are run from there.
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("tmpfs", str(memory(node, build)), "tmpfs", flags, "mode=0700")


def scratch(node: Node, build: str) -> Path:
    """A build's own directory."""
    return node.paths.builds / build / "scratch"


def memory(node: Node, build: str) -> Path:
    """The same in memory."""
    return node.paths.build_mounts / build / "memory"


@asynccontextmanager
async def using(node: Node, build: str) -> AsyncIterator[Lease]:
    """A build for the time of a call, which its end waits for. NOT_FOUND if it has ended."""
    lease = node.builds.get(build)
    if lease is None or lease.ended:
        raise not_found(f"there is no build {build!r}: it has ended")
    done = asyncio.get_running_loop().create_future()
    lease.work.add(done)
    try:
        yield lease
    finally:
        lease.work.discard(done)
        done.set_result(None)


async def end(node: Node, lease: Lease) -> None:
    """Remove what the build has; what cannot be now, later. Raises nothing of it."""
    lease.ended = True
    while lease.work:
        await asyncio.wait(lease.work)
    async with lease.lock:
        if not lease.gone:
            await node.undoing.undo(lambda: _discard(node, lease), lambda: not lease.gone, lease.lock, build=lease.id)


async def _discard(node: Node, lease: Lease) -> None:
    while pods := [key for key, sandbox in node.sandboxes.items() if sandbox.build == lease.id]:
        await asyncio.gather(*(sandbox_stop.remove(node, key) for key in pods))
    await asyncio.get_running_loop().run_in_executor(node.blocking, _remove, node, lease.id)
    for image_id in list(lease.images):
        node.images.release(f"{lease.id}/{image_id}")
    lease.images.clear()
    lease.gone = True
    node.builds.pop(lease.id, None)


def _remove(node: Node, build: str) -> None:
    mounts.detach_all(str(node.paths.build_mounts / build))
    removal.remove_tree(node.paths.build_mounts / build)
    removal.remove_tree(node.paths.builds / build)


async def recover(node: Node) -> None:
    """End the builds of a daemon that was killed: their clients' calls have ended with it."""
    for name in _names(node.paths.builds):
        if not _ID.fullmatch(name):
            continue
        for sandbox in node.sandboxes.values():
            if _named(node, sandbox.record.config) == name:
                sandbox.build = name
        log.info("swept", build=name)
        await end(node, Lease(name))


async def close(node: Node) -> None:
    """End all of them: the daemon ends."""
    await asyncio.gather(*(end(node, lease) for lease in list(node.builds.values())))


def hold(node: Node, lease: Lease, reference: str) -> Image:
    """An image, whose layers stay until the build ends. NOT_FOUND if it is not here; FAILED_PRECONDITION for an artifact."""
    image = node.images.resolve(reference) or node.images.image_of(reference)
    if image is None:
        raise not_found(f"image {reference} is not on this node")
    if image.kind == ARTIFACT:
        raise failed_precondition(f"{reference} is an artifact, and no image to build upon")
    if image.id not in lease.images:
        lease.images[image.id] = image
        node.images.acquire(image, f"{lease.id}/{image.id}")
    return image


async def mount(node: Node, lease: Lease, image: Image | None, *, writable: bool) -> tuple[str, str]:
    """Mount an image, or nothing at all; the mount's name and its directory."""
    lease.numbers += 1
    name = str(lease.numbers)
    lower = node.images.lower_dirs(image) if image is not None else [node.images.empty]
    place = node.paths.build_mounts / lease.id / "mounts" / name
    layer = upper(node, lease.id, name).parent
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(node.blocking, _make_layer, node, layer if writable else None, image)
    arguments = {
        "directory": str(place),
        "lowerdirs": list(lower),
        "layer_mounts": str(node.paths.layer_mounts),
        "upper": str(layer / "upper") if writable else "",
        "work": str(layer / "work") if writable else "",
    }
    reply = await node.fork_server.run_job("shim.build_mounts:mount", arguments, timeout=limits.SANDBOX_SECONDS)
    lease.mounts.add(name)
    return name, str(reply["root"])


def upper(node: Node, build: str, name: str) -> Path:
    """What was written to a mount."""
    return node.paths.builds / build / "mounts" / name / "upper"


def _make_layer(node: Node, layer: Path | None, image: Image | None) -> None:
    if layer is None:
        return
    layer.mkdir(mode=0o700, parents=True)
    writable_layer.make(layer, *(node.images.root_owner(image) if image is not None else (0o755, 0, 0)))


async def unmount(node: Node, lease: Lease, name: str) -> None:
    """Give a mount back, with what was written to it."""
    if name in lease.mounts:
        lease.mounts.discard(name)
        await asyncio.get_running_loop().run_in_executor(node.blocking, _unmount, node, lease.id, name)


def _unmount(node: Node, build: str, name: str) -> None:
    place = node.paths.build_mounts / build / "mounts" / name
    mounts.detach_all(str(place))
    removal.discard_tree(place)
    removal.discard_tree(upper(node, build, name).parent)


async def prune(node: Node, *, dry: bool) -> Left:
    """Forget steps and directories of RUN --mount=type=cache that no build uses; `dry` counts all of them."""
    held = {image_id for lease in node.builds.values() if not lease.ended for image_id in lease.images}
    steps = size = 0
    for image in node.images.list():
        names = [name for name in image.repo_tags if is_step(name)]
        alone = len(names) == len(image.repo_tags) + len(image.repo_digests)  # or it has none: a later build has taken it
        if (not names and not alone) or (not dry and image.id in held):
            continue
        steps += max(1, len(names))
        size += image.size if alone else 0
        if alone and not dry:
            await node.images.remove(image.id)
        elif not dry:
            for name in names:
                await node.images.untag(name)
    caches = 0
    for name in _names(node.paths.build_caches):
        place = node.paths.build_caches / name
        found = (await node.images.measure(str(place)))[0]
        if dry or await asyncio.get_running_loop().run_in_executor(node.blocking, _remove_cache, place):
            caches, size = caches + 1, size + found
    return Left(steps, caches, size)


def _remove_cache(place: Path) -> bool:
    """Remove a directory unless a build uses it. Who comes for it meanwhile looks again whether it is still there."""
    try:
        lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return False  # another call has removed it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink == 0:  # another call has
            return False
        gone = place.with_name(f"{place.name}.gone-{secrets.token_hex(4)}")  # one may be left of a daemon that was killed
        place.rename(gone)
        removal.remove_tree(gone)
    except BlockingIOError:
        return False
    except OSError as error:
        raise CrispError(Code.FAILED_PRECONDITION, f"cannot remove {place}: {error.strerror}") from None
    finally:
        os.close(lock)
    return True


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
