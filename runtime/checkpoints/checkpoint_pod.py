"""CheckpointPod: running containers of a pod, all as of one moment, in a directory of the client's (pod_manifest.py).

    check ─▶ freeze all ─▶ one after the other: CRIU, writable layer ─▶ /dev/shm ─▶ thaw all ─▶ fsync ─▶ pod.json

Nothing is written outside the directory. What fails leaves it as empty as it was, and the containers running; so does the
death of the daemon, whose successor removes what there is.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from proto import api_pb2 as cri
from proto.errors import failed_precondition, invalid
from runtime import deadlines
from runtime.checkpoints import checkpoint_container, notes, pod_manifest
from runtime.checkpoints.pod_manifest import Manifest
from runtime.lifecycle import ContainerState, SandboxState
from runtime.oci import user_namespaces
from runtime.pods import criu

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container, Sandbox


async def checkpoint_pod(node: Node, request: cri.CheckpointPodRequest) -> None:
    """Write the checkpoint into `request.output_path`; the containers go on.

    FAILED_PRECONDITION with CRIU's reason if it cannot be done, DEADLINE_EXCEEDED if it took longer than the client waits.
    """
    refuse_options(request.options)
    sandbox = node.sandbox(request.pod_sandbox_id)
    directory = Path(request.output_path)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(node.blocking, _check_directory, directory)
    containers = _chosen(sandbox, list(request.container_ids))
    criu.require()
    if user_namespaces.mapping(sandbox.record.config) is not None:
        raise failed_precondition(f"pod {sandbox.record.id} has a user namespace, into which CRIU cannot restore")
    async with AsyncExitStack() as stack:
        for container in sorted(containers, key=lambda container: container.record.id):
            await stack.enter_async_context(container.lock)
        _chosen(sandbox, list(request.container_ids))  # they may have ended while a lock was waited for
        places = [directory / str(index) for index in range(len(containers))]
        partial = [directory / name for name in (pod_manifest.SHM, pod_manifest.NAME, f"{pod_manifest.NAME}.partial")]
        async with notes.writing(node.paths.checkpoint_notes, node.blocking, [*partial, *places]):
            await _write(node, sandbox, containers, directory)


async def _write(node: Node, sandbox: Sandbox, containers: list[Container], directory: Path) -> None:
    loop = asyncio.get_running_loop()
    doing = f"checkpoint of pod {sandbox.record.id}"
    async with checkpoint_container.frozen(node, containers):
        for index, container in enumerate(containers):
            deadlines.check(doing)
            await checkpoint_container.dump(node, container, directory / str(index))
        # A container that still runs could turn a directory into a link under the packer's eyes.
        has_shm = has_own_shm(sandbox) and all(container in containers for container in _running(sandbox))
        if has_shm:
            shm = node.paths.sandbox(sandbox.record.id) / "shm"
            await loop.run_in_executor(node.blocking, checkpoint_container.pack_directory, shm, directory / pod_manifest.SHM)
    deadlines.check(doing)
    handler = node.handlers.get(sandbox.record.handler).name
    names = [container.record.config.metadata.name for container in containers]
    try:
        await loop.run_in_executor(node.blocking, pod_manifest.write, directory, Manifest(handler, names, has_shm))
    except OSError as error:
        raise checkpoint_container.cannot_write(directory, error) from None
    deadlines.check(doing)


def refuse_options(options: object) -> None:
    """Raise INVALID_ARGUMENT for any option: there are none. api.proto: "must reject unsupported or invalid keys"."""
    if options:
        raise invalid(f"unknown options {', '.join(sorted(dict(options)))}: there are none")  # type: ignore[call-overload]


def has_own_shm(sandbox: Sandbox) -> bool:
    """Whether the pod's /dev/shm is its own and not the node's."""
    return sandbox.record.config.linux.security_context.namespace_options.ipc != cri.NODE


def _running(sandbox: Sandbox) -> list[Container]:
    return [c for c in sandbox.containers.values() if c.record.state is ContainerState.RUNNING]


def _check_directory(directory: Path) -> None:
    """api.proto: "Absolute path to an existing, empty directory"."""
    if not directory.is_absolute():
        raise invalid(f"{str(directory)!r} is not an absolute path")
    try:
        content = os.listdir(directory)
    except OSError as error:
        raise failed_precondition(f"output path {directory}: {error.strerror}") from None
    if content:
        raise failed_precondition(f"output path {directory} is not empty")


def _chosen(sandbox: Sandbox, ids: list[str]) -> list[Container]:
    """api.proto: the list is not empty, has nothing twice, and all are running containers of the sandbox."""
    if sandbox.record.state is not SandboxState.READY:
        raise failed_precondition(f"sandbox {sandbox.record.id} is {sandbox.record.state.value}, not ready")
    if not ids or len(set(ids)) != len(ids):
        raise invalid("container_ids must name containers, and none twice")
    for identity in ids:
        container = sandbox.containers.get(identity)
        if container is None:
            raise invalid(f"sandbox {sandbox.record.id} has no container {identity}")
        if container.record.state is not ContainerState.RUNNING:
            raise failed_precondition(f"container {identity} is {container.record.state.value}, not running")
    names = [sandbox.containers[identity].record.config.metadata.name for identity in ids]
    if len(set(names)) != len(names):
        raise failed_precondition("two of the containers have the same name, by which a restore tells them apart")
    return [sandbox.containers[identity] for identity in ids]
