"""RestorePod: a sandbox, and containers that are CREATED and go on where the checkpoint left them once they are started.

    check ─▶ RunPodSandbox ─▶ /dev/shm ─▶ CreateContainer out of the checkpoint, for all at once

A failure removes the sandbox with all that is in it. Called again after it succeeded, the answer is the same pod.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from proto import api_pb2 as cri
from proto.errors import failed_precondition, invalid
from runtime import deadlines
from runtime.checkpoints import checkpoint_pod, pod_manifest
from runtime.lifecycle import ContainerState
from runtime.pods import container_create, sandbox_run, sandbox_stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.checkpoints.pod_manifest import Manifest
    from runtime.pods.node import Node


async def restore(node: Node, request: cri.RestorePodRequest) -> cri.RestorePodResponse:
    """Make the pod, or join the call that makes it."""
    checkpoint_pod.refuse_options(request.options)
    if not request.checkpoint_path.startswith("/"):
        raise invalid(f"{request.checkpoint_path!r} is not an absolute path")
    metadata = request.config.metadata
    key = ("restore", metadata.namespace, metadata.name, metadata.uid, metadata.attempt)
    return await node.joiner.run(key, lambda: _restore(node, request))


async def _restore(node: Node, request: cri.RestorePodRequest) -> cri.RestorePodResponse:
    directory = Path(request.checkpoint_path)
    manifest = await asyncio.get_running_loop().run_in_executor(node.blocking, pod_manifest.read, directory)
    _check_names(manifest, request.container_configs)
    handler = node.handlers.get(request.runtime_handler).name
    if manifest.handler != handler:
        raise failed_precondition(f"the checkpoint is one of handler {manifest.handler!r}, and not of {handler!r}")
    before = set(node.sandboxes)
    sandbox_id = await sandbox_run.run(
        node, cri.RunPodSandboxRequest(config=request.config, runtime_handler=request.runtime_handler)
    )
    try:
        ids = await _containers(node, request, manifest, sandbox_id, is_new=sandbox_id not in before)
        deadlines.check(f"restore of pod {request.config.metadata.name}")
    except BaseException:
        if sandbox_id not in before:
            await asyncio.shield(asyncio.ensure_future(sandbox_stop.remove(node, sandbox_id)))
        raise
    restored = [
        cri.RestoredContainer(name=config.metadata.name, container_id=identity)
        for config, identity in zip(request.container_configs, ids, strict=True)
    ]
    return cri.RestorePodResponse(pod_sandbox_id=sandbox_id, restored_containers=restored)


def _check_names(manifest: Manifest, configs: Sequence[cri.ContainerConfig]) -> None:
    """api.proto: the names are not empty, none is there twice, and they are those of the checkpoint's containers."""
    names = [config.metadata.name for config in configs]
    if not names or not all(names) or len(set(names)) != len(names):
        raise invalid("container_configs must name containers, and none twice")
    if set(names) != set(manifest.containers):
        there = ", ".join(sorted(manifest.containers))
        raise failed_precondition(f"the checkpoint holds containers {there}; asked for are {', '.join(sorted(names))}")


async def _containers(
    node: Node, request: cri.RestorePodRequest, manifest: Manifest, sandbox_id: str, *, is_new: bool
) -> list[str]:
    """Make them all; the ids in the order of the configurations."""
    directory = Path(request.checkpoint_path)
    sandbox = node.sandbox(sandbox_id)
    if is_new and manifest.shm and checkpoint_pod.has_own_shm(sandbox):
        shm = str(node.paths.sandbox(sandbox_id) / "shm")
        await node.images.apply_changes(str(directory / pod_manifest.SHM), "", shm, [])
    places = {name: str(directory / str(index)) for index, name in enumerate(manifest.containers)}
    outcomes = await asyncio.gather(
        *(
            container_create.create(
                node,
                cri.CreateContainerRequest(pod_sandbox_id=sandbox_id, config=config, sandbox_config=request.config),
                restore_from=places[config.metadata.name],
            )
            for config in request.container_configs
        ),
        return_exceptions=True,
    )
    ids = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        record = node.container(outcome).record
        if not record.restored_from or record.state is not ContainerState.CREATED:
            raise failed_precondition(f"container {outcome} of the pod is there already, {record.state.value}")
        ids.append(outcome)
    return ids
