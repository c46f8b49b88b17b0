"""Start-up is recovery: records are compared with the kernel, and what differs is finished or undone.

What it relies on:

1. Every kernel object and directory derives its name from an id that was recorded before the object was made. So what no
   record explains was being undone, or belongs to a record that was deleted: it is removed.
2. A record without `ready_at` or `made_at` belongs to a call that never returned: it is undone, and a client that
   asks again with the same attempt gets a new one.
3. A shim holds the lock on its bundle as long as it lives. A free lock and no exit record mean that the shim was killed:
   its container is ended, because nobody could tell its exit code or keep its log.
4. /run is empty after a reboot. Sandboxes are then stopped, containers exited; both stay listed until they are removed.
5. A shim that lives but does not answer is none that was killed: its container is left alone, and the shim asked again.
6. What cannot be recovered (a process that does not die) is logged, and must not keep the daemon from serving the rest.
7. A record that cannot be read is set aside in the log, its id counts as known, and nothing of it is removed.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Any, Final

import structlog

from kernel import cgroups, mounts, namespaces, removal
from proto import api_pb2 as cri
from proto.errors import Code, CrispError
from runtime.checkpoints import notes
from runtime.host import cgroup_end
from runtime.lifecycle import ContainerState, SandboxState
from runtime.paths import NETNS_DIRECTORY
from runtime.pods import (
    builds,
    container_end,
    container_remove,
    container_watch,
    image_volumes,
    pause_watch,
    restore,
    sandbox_group,
    sandbox_release,
    sandbox_stop,
)
from runtime.pods.objects import Container, Sandbox
from runtime.records import CLOCK, ContainerRecord, SandboxRecord
from runtime.shims.client import ShimClient, kill_shim, read_exit_record, shim_alive

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from runtime.pods.node import Node

log = structlog.get_logger(__name__)

PARALLEL: Final = 32
"""Containers that are adopted at once."""

ID: Final = re.compile("[0-9a-f]{64}")
"""Directories with other names are somebody else's."""

REBOOTED: Final = "the node was rebooted, or something removed its bundle"

POD_GROUP: Final = re.compile(r"(?:.*-)?pod([0-9a-f]{64})(?:\.slice)?")
"""Name of the cgroup of a pod whose client named none."""


async def recover(node: Node) -> None:
    """Bring records and kernel together; afterwards the daemon may serve."""
    started = CLOCK.now()
    unreadable = _load(node)
    gate = asyncio.Semaphore(PARALLEL)

    async def adopt(container: Container) -> None:
        async with gate:
            await _apart(_container(node, container), container=container.record.id)

    await asyncio.gather(*(adopt(container) for container in list(node.containers.values())))
    _say_what_a_reboot_ended(node, started)
    node.images.drop_unused()  # every container holds its image by now
    for sandbox in list(node.sandboxes.values()):
        await _apart(_sandbox(node, sandbox), sandbox=sandbox.record.id)
    await _apart(builds.recover(node), builds="those of the last daemon")
    connected = {sandbox_id for sandbox_id, sandbox in node.sandboxes.items() if _connected(sandbox.record)}
    await _apart(node.network.sweep(connected | unreadable), network="sweep")
    spared = unreadable | await _end_unknown(node, unreadable)
    await asyncio.get_running_loop().run_in_executor(node.blocking, _sweep, node, spared)
    await notes.sweep(node.paths.checkpoint_notes, node.blocking)
    running = sum(c.record.state is ContainerState.RUNNING for c in node.containers.values())
    log.info("recovered", sandboxes=len(node.sandboxes), containers=len(node.containers), running=running)


def _connected(record: SandboxRecord) -> bool:
    """Whether a sandbox has its network yet: one that has been disconnected may have links still, which go behind its stop.

    One that is not ready any more, since somebody has killed its init, is disconnected when it is stopped and not before.
    """
    return not record.stopped_at or bool(record.network)


def _say_what_a_reboot_ended(node: Node, since: int) -> None:
    """One line, however many they are: a power cut is the node's, and no container's defect."""
    ended = [c.record.id for c in node.containers.values() if REBOOTED in c.record.message and c.record.finished_at >= since]
    if ended:
        log.warning("containers ended with a reboot of the node", containers=len(ended), first=ended[0])


async def _apart(work: Coroutine[Any, Any, None], **about: str) -> None:
    """Do one piece of recovery. If it cannot be done (a process does not die), the rest must be served all the same.

    What is left of it is finished when the object is stopped, removed or asked for again, or at the next start.
    """
    try:
        await work
    except (CrispError, OSError) as error:
        if isinstance(error, CrispError) and error.code is Code.FAILED_PRECONDITION:
            raise  # a newer crisp is needed
        log.error("not recovered", error=str(error), **about)


async def _end_unknown(node: Node, unreadable: set[str]) -> set[str]:
    """End containers that no record explains, by their shims; the ids of those that could not be ended."""
    spared = set()
    for name in _names(node.paths.bundles):
        bundle = str(node.paths.bundle(name))
        if name in node.containers or name in unreadable or not shim_alive(bundle):
            continue
        log.warning("ending a container that no record explains", container=name)
        try:
            shim = await ShimClient.connect(bundle)
            await shim.kill()
            await shim.gone()
        except CrispError as error:
            log.error("it cannot be ended", container=name, error=error.message)
            spared.add(name)
    return spared


def _load(node: Node) -> set[str]:
    """Records into memory; the ids of those that cannot be read."""
    unreadable: set[str] = set()
    for key, document in node.store.sandboxes.items():
        try:
            record = SandboxRecord.parse(document)
        except (KeyError, TypeError, ValueError) as error:
            log.error("sandbox record cannot be read", sandbox=key, error=str(error))
            unreadable.add(key)
            continue
        CLOCK.seen(record.config.metadata.uid, record.created_at)
        node.sandboxes[key] = Sandbox(record, known=bool(record.ready_at), stop_told=bool(record.stopped_at))
    for key, document in node.store.containers.items():
        try:
            container = ContainerRecord.parse(document)
            sandbox = node.sandboxes[container.sandbox_id]
        except (KeyError, TypeError, ValueError) as error:
            log.error("container record cannot be read", container=key, error=str(error))
            unreadable.add(key)
            continue
        CLOCK.seen(sandbox.record.config.metadata.uid, container.created_at)
        node.containers[key] = sandbox.containers[key] = Container(
            container, sandbox, known=bool(container.made_at), stop_told=bool(container.finished_at)
        )
    for key, value in node.store.settings.items():
        if key == "pod_cidr":
            node.pod_cidr = value
        elif key == sandbox_group.SETTING:
            node.looked_at = True
    return unreadable


async def _container(node: Node, container: Container) -> None:
    record = container.record
    bundle = str(node.paths.bundle(record.id))
    for holder, image_id in image_volumes.holders(record):
        if (image := node.images.image_of(image_id)) is not None:
            node.images.acquire(image, holder)
    if shim_alive(bundle):
        try:
            container.shim = await ShimClient.connect(bundle)
        except CrispError as error:
            if error.code is Code.FAILED_PRECONDITION:  # a newer crisp started it, which knows how to speak to it
                raise
            log.warning("shim does not answer", container=record.id, error=error.message)
    if record.state is ContainerState.CREATING:
        if container.shim is not None:
            await container.shim.kill()
            await container.shim.gone()
        else:
            kill_shim(bundle)
        await container_remove.undo(node, container)
        return
    if container.shim is not None:
        started_at = container.shim.hello["started_at"]
        if started_at and not record.started_at:
            record.started_at, record.pid = started_at, container.shim.hello["pid"]
            await node.store.containers.note(record.id, record.document())
        container_watch.watch(node, container)
        if record.restored_from and started_at:
            await restore.remove_files(node, container)
        if container.shim.hello["state"] == "paused" and container.shim.version == 1:  # newer shims thaw it themselves
            await container.shim.resume()
        return
    if shim_alive(bundle):
        container_watch.watch(node, container)
        return
    exit_record = read_exit_record(bundle)
    if exit_record is not None:
        await container_end.settle(node, container, exit_record)
        container.gone.set()
    elif os.path.isdir(bundle):
        await container_end.lost(node, container, "its shim was killed")
    else:
        # Of all of them at once: see `_say_what_a_reboot_ended`.
        await container_end.lost(node, container, REBOOTED, said=True)


async def _sandbox(node: Node, sandbox: Sandbox) -> None:
    record = sandbox.record
    if record.state is SandboxState.CREATING:
        await sandbox_release.undo(node, sandbox)
    elif record.state is SandboxState.READY and (missing := _missing(node, record)):
        log.warning("sandbox is not ready any more", sandbox=record.id, missing=missing)
        record.message = f"{missing} is gone: the node was rebooted, or something removed it"
        await sandbox_stop.stop(node, record.id)
    elif record.state is SandboxState.READY:
        _publish(node, record.id)
        if record.pause_pid:
            pause_watch.watch(node, sandbox)


def _publish(node: Node, sandbox_id: str) -> None:
    """Pin the pod's network namespace where plugins look: somebody may have removed it, or an old crisp made the pod."""
    pinned, place = str(node.paths.namespace(sandbox_id, "net")), str(node.paths.netns(sandbox_id))
    if namespaces.is_pinned(pinned) and not namespaces.is_pinned(place):
        namespaces.publish(pinned, place)


def _missing(node: Node, record: SandboxRecord) -> str:
    """What a ready sandbox lacks; empty if nothing."""
    options = record.config.linux.security_context.namespace_options
    if not node.paths.sandbox(record.id).is_dir():
        return "its directory"
    if options.network == cri.POD and not namespaces.is_pinned(str(node.paths.namespace(record.id, "net"))):
        return "its network namespace"
    if options.ipc != cri.NODE and not namespaces.is_pinned(str(node.paths.namespace(record.id, "ipc"))):
        return "its IPC namespace"
    if record.pause_pid and not node.host.hierarchies.group(record.cgroup).populated():
        return "its init process"
    return ""


def _sweep(node: Node, spared: set[str]) -> None:
    """Remove directories, mounts and cgroups that no record explains, but those of the ids in `spared`."""
    known = set(node.containers) | set(node.sandboxes) | spared
    # The directory is made before the pod's cgroup and removed after it: other groups are those of another daemon's pods.
    made_here = set(_names(node.paths.sandboxes))
    runtimes = [node.paths.runtime_root(name) for name in _names(node.paths.runtimes)]
    for parent in (node.paths.sandboxes, node.paths.bundles, node.paths.writable_layers, *runtimes):
        for name in _names(parent):
            if name not in known and ID.fullmatch(name):
                log.info("swept", path=str(parent / name))
                mounts.detach_all(str(parent / name))
                removal.discard_tree(parent / name)
    for name in _names(NETNS_DIRECTORY):
        sandbox_id = node.paths.sandbox_of_netns(name)
        if sandbox_id and sandbox_id not in known:
            log.info("swept", path=str(NETNS_DIRECTORY / name))
            namespaces.unpin(str(NETNS_DIRECTORY / name))
    pods = node.host.hierarchies.group(cgroups.parent_path(node.config.cgroup.parent))
    if node.host.systemd_cgroups:
        pods = node.host.hierarchies.group(cgroups.parent_path(pods.path.replace("/", "-") + ".slice"))
    for name in _names_of_group(pods.directory()):
        match = POD_GROUP.fullmatch(name)
        if match and match[1] in made_here - known:
            log.info("swept", cgroup=f"{pods.path}/{name}")
            try:
                cgroup_end.end(node.host.hierarchies.group(f"{pods.path}/{name}"))
            except CrispError as error:
                log.warning("cannot sweep", error=error.message)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _names_of_group(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
