"""CreateContainer: record → host paths → OCI configuration → shim → rootfs, user and `create` in the shim → made.

Failpoints: container.recorded, container.shim, container.made. A failure is undone by the same code that RemoveContainer
uses; until the container is made no list shows it.
"""

from __future__ import annotations

import asyncio
import functools
import os
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from kernel import cgroups
from kernel.failpoints import failpoint
from proto import api_pb2 as cri
from proto.errors import Code, CrispError, failed_precondition, invalid
from runtime import limits
from runtime.host import handler_probe
from runtime.lifecycle import ContainerState, SandboxState
from runtime.nri import placed
from runtime.oci import asked, seccomp_programs, stop_signals, systemd_limits, user_namespaces
from runtime.oci import document as oci_document
from runtime.oci.process import user
from runtime.pods import (
    container_adjust,
    container_remove,
    container_spec,
    container_watch,
    image_names,
    image_volumes,
    layer_usage,
    plugin_hooks,
    restore,
    sandbox_run,
    scope_limits,
    target_process,
    writable_layer,
)
from runtime.pods.node import new_id
from runtime.pods.objects import Container
from runtime.records import CLOCK, ContainerRecord
from runtime.shims.client import ShimClient
from runtime.shims.fork_server import ShimOptions

if TYPE_CHECKING:
    from pathlib import Path

    from imagesvc.service import ImageService
    from imagesvc.store.images import Image
    from runtime.host.handlers import Handler
    from runtime.pods.node import Node
    from runtime.pods.objects import Sandbox
    from runtime.pods.restore import Checkpoint


async def create(node: Node, request: cri.CreateContainerRequest, restore_from: str = "") -> str:
    """Make a container, or join the call that makes it; the id.

    Asked again with the same sandbox, name and attempt for a container that is made, the answer is that container.
    `restore_from` is the directory of a checkpoint of which it is made (RestorePod); the image can name one too.
    """
    sandbox = node.sandbox(request.pod_sandbox_id)
    if sandbox.record.state is SandboxState.CREATING:  # NRI plugins have its id already
        raise failed_precondition(f"sandbox {sandbox.record.id} is being made")
    metadata = request.config.metadata
    if not metadata.name:
        raise invalid("the container's metadata lacks a name")
    if not request.config.image.image:
        raise invalid(f"container {metadata.name} names no image")
    asked.check_removal(request.config.annotations)
    key = ("container", sandbox.record.id, metadata.name, metadata.attempt)
    made = await node.joiner.run(key, lambda: _create(node, sandbox, request.config, restore_from))
    if (joined := node.containers.get(made)) is not None and joined.record.config != request.config:
        return _existing(joined, request.config)
    return made


async def _create(node: Node, sandbox: Sandbox, config: cri.ContainerConfig, restore_from: str) -> str:
    for known in list(sandbox.containers.values()):
        metadata = known.record.config.metadata
        if (metadata.name, metadata.attempt) == (config.metadata.name, config.metadata.attempt):
            if known.record.state is ContainerState.CREATING:
                # What is left of a call whose undoing failed, for a call under way would have been joined.
                async with known.lock:
                    await container_remove.discard(node, known)
                continue
            return _existing(known, config)
    await asyncio.get_running_loop().run_in_executor(node.blocking, node.store.require_room)
    container_id = new_id()
    source = restore_from or restore.origin(node, config.image.image, config.image.user_specified_image)
    if source is None:
        image = _image(node.images, config, held=bool(sandbox.build))
        return await _create_of(node, sandbox, config, container_id, image)
    try:
        expected = _image(node.images, config) if restore_from else None
        checkpoint = await restore.stage(node, container_id, source, expected)
        return await _create_of(node, sandbox, config, container_id, checkpoint.image, checkpoint)
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(restore.drop(node, container_id)))
        raise


def _image(images: ImageService, config: cri.ContainerConfig, *, held: bool = False) -> Image:
    """`held`: somebody holds it, so that it may have been removed."""
    image = images.resolve(config.image.image) or (images.image_of(config.image.image) if held else None)
    if image is None:
        raise CrispError(Code.NOT_FOUND, f"image {config.image.image} is not on this node: pull it first")
    return image


async def _create_of(
    node: Node,
    sandbox: Sandbox,
    config: cri.ContainerConfig,
    container_id: str,
    image: Image,
    checkpoint: Checkpoint | None = None,
) -> str:
    volumes = image_volumes.resolve(node.images, config)
    async with sandbox.lock:
        if config.linux.security_context.namespace_options.pid == cri.POD:
            await sandbox_run.share_pid_namespace(node, sandbox)
        container = _register(node, sandbox, config, container_id, image, volumes)
    if checkpoint is not None:
        container.record.restored_from, container.record.image_name = checkpoint.origin, checkpoint.image_name
    async with container.lock:
        try:
            await node.store.containers.put(container.record.id, container.record.document())
            failpoint("container.recorded")
            async with target_process.held(node, container) as target_pid:
                await _make(node, container, image, checkpoint, target_pid)
            container.record.made_at = CLOCK.now()
            await node.store.containers.put(container.record.id, container.record.document())
        except BaseException:
            container.record.made_at = 0
            await plugin_hooks.container_failed(node, container)
            await container_remove.undo(node, container)
            raise
        container_watch.watch(node, container)
        node.events.container_created(container)
        await plugin_hooks.created(node, container)
    return container.record.id


def _existing(container: Container, config: cri.ContainerConfig) -> str:
    record = container.record
    if record.config == config:
        return record.id
    if asked.MADE_BY in config.annotations:
        raise CrispError(Code.ALREADY_EXISTS, f"the name {config.metadata.name} is taken, by container {record.id[:13]}")
    raise CrispError(
        Code.ALREADY_EXISTS,
        f"container {config.metadata.name} attempt {config.metadata.attempt} exists as {record.id} with another "
        "configuration: remove it, or ask for a higher attempt",
    )


def _register(
    node: Node, sandbox: Sandbox, config: cri.ContainerConfig, container_id: str, image: Image, volumes: list[Image]
) -> Container:
    """Enter the container in memory; from here on the sandbox cannot go without it."""
    if sandbox.record.state is not SandboxState.READY:
        raise failed_precondition(f"sandbox {sandbox.record.id} is {sandbox.record.state.value}, not ready")
    shown = image_names.names(image, config.image.user_specified_image or config.image.image)
    record = ContainerRecord(
        id=container_id,
        sandbox_id=sandbox.record.id,
        config=config,
        image_id=image.id,
        image_name=shown.name,
        image_ref=shown.reference,
        log_path=_log_path(node, sandbox, config, container_id),
        created_at=CLOCK.next_of(sandbox.record.config.metadata.uid),
        handler=node.handlers.get(sandbox.record.handler).name,
        cgroup=cgroups.container_path(sandbox.record.cgroup_parent, container_id, node.host.systemd_cgroups),
        stop_signal=stop_signals.choose(config.stop_signal, image.config.stop_signal),
        resources=config.linux.resources,
        volume_images=[volume.id for volume in volumes],
    )
    container = Container(record, sandbox)
    for (holder, _), held in zip(image_volumes.holders(record), (image, *volumes), strict=True):
        node.images.acquire(held, holder)
    node.containers[container_id] = container
    sandbox.containers[container_id] = container
    if asked.removed_at_end(config.annotations):
        node.to_be_removed.set()
    return container


def _log_path(node: Node, sandbox: Sandbox, config: cri.ContainerConfig, container_id: str) -> str:
    """Never empty: the kubelet globs for what stands here plus `*`, and removes the hits."""
    directory = sandbox.record.config.log_directory
    if not directory or not config.log_path:
        return str(node.paths.writable_layer(container_id) / "container.log")
    if ".." in PurePosixPath(config.log_path).parts:
        raise invalid(f"log path {config.log_path!r} leaves the pod's log directory")
    return os.path.join(directory, config.log_path.lstrip("/"))


async def _make(node: Node, container: Container, image: Image, checkpoint: Checkpoint | None, target_pid: int) -> None:
    record = container.record
    bundle = node.paths.bundle(record.id)
    loop = asyncio.get_running_loop()
    described = image if checkpoint is None else restore.described(checkpoint)
    directories = functools.partial(_make_directories, node, container, image)
    document = await container_spec.build(node, container, described, target_pid, directories)
    wanted = await plugin_hooks.create(node, container, document)
    failpoint("container.told")
    if wanted is not None:
        document = await container_adjust.adjust(node, container, document, wanted.adjustment)
        container.spec, container.view = document, None
    if checkpoint is not None:
        added = placed.destinations(wanted.adjustment.mounts) if wanted is not None else ()
        document = await restore.prepare(node, container, checkpoint, document, added)
    user, rootfs = _user(container, described, document), _rootfs(node, container, image)
    handler = node.handlers.get(container.sandbox.record.handler)
    filtered = await loop.run_in_executor(node.blocking, _write_spec, node, bundle, document, handler, checkpoint)
    await _spawn_shim(node, container, handler)
    failpoint("container.shim")
    container.shim = await ShimClient.connect(str(bundle))
    container.beginning = True
    try:
        made = await container.shim.create(
            rootfs | {"label": document["linux"].get("mountLabel", "")},
            user,
            mkdirs=sorted(image.config.volumes),
            volumes=image_volumes.shim_arguments(node.images, record, rootfs["userns"]),
            stdin=record.config.stdin,
            stdin_once=record.config.stdin_once,
            tty=record.config.tty,
            max_line=node.config.containers.max_log_line_size,
            restore=restore.places(checkpoint) if checkpoint is not None else None,
        )
    finally:
        container.beginning = False
    record.pid, record.uid, record.gid, record.groups = made.pid, made.uid, made.gid, made.groups
    if checkpoint is not None:
        restore.check_user(checkpoint, made)
    else:
        told = systemd_limits.new_assignments(document["linux"]["resources"])
        if made.pid:
            await scope_limits.tell(node.host, node.blocking, record.cgroup, told)
        await container_adjust.settle(node, container, document)
        if made.pid and filtered.key:
            await loop.run_in_executor(node.blocking, node.filters.settle, filtered, handler, record.id, made.pid)
            node.filters.consider(filtered, handler, functools.partial(_obeys, node))
    failpoint("container.made")


def _write_spec(
    node: Node, bundle: Path, document: dict[str, Any], handler: Handler, checkpoint: Checkpoint | None
) -> seccomp_programs.Use:
    """Write the OCI configuration for the shim; how the container comes to its seccomp filter. Blocks."""
    # A restored process brings its filters with it.
    use = node.filters.use(document, handler) if checkpoint is None else seccomp_programs.Use()
    data = oci_document.encode(seccomp_programs.annotated(document, use))
    # Variables can be secrets, and the bundle's path is no secret.
    fd = os.open(bundle / "spec.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
    return use


async def _obeys(node: Node, handler: Handler) -> str:
    return await handler_probe.ready_filters(handler, node.paths, node.host, node.fork_server)


def _make_directories(node: Node, container: Container, image: Image) -> None:
    """Runs in the pool: the disk can hang."""
    record = container.record
    bundle, layer = node.paths.bundle(record.id), node.paths.writable_layer(record.id)
    for directory in (bundle, layer):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    layer_usage.start_counting(node, record)
    bundle.chmod(0o711)  # the root of a user namespace has to get through to the rootfs
    mode, uid, gid = node.images.root_owner(image)
    mapped = user_namespaces.mapping(container.sandbox.record.config)
    if mapped is not None:
        uid, gid = uid + mapped.uids.host, gid + mapped.gids.host
    writable_layer.make(layer, mode, uid, gid)
    (bundle / "rootfs").mkdir(exist_ok=True)


async def _spawn_shim(node: Node, container: Container, handler: Handler) -> None:
    """With the handler for which the configuration was written: a reload meanwhile may have brought another."""
    record = container.record
    await node.fork_server.spawn_shim(
        ShimOptions(
            id=record.id,
            bundle=str(node.paths.bundle(record.id)),
            runtime_name=handler.name,
            runtime_path=handler.path,
            runtime_root=handler.root,
            cgroup=record.cgroup,
            hierarchies=node.host.hierarchies,
            systemd_cgroup=handler.systemd_cgroups,
            detach_unified=handler.hide_unified,
            delete_is_removal=handler.delete_is_removal,
            start_is_a_byte=handler.start_is_a_byte,
            seal=handler.seals_itself,
            oom_score_adj=max(limits.SHIM_OOM_SCORE_ADJ, node.host.lowest_oom_score_adj),
            shim_cgroup=node.config.cgroup.shims.strip("/") or None,
        )
    )


def _user(container: Container, image: Image, document: dict[str, Any]) -> dict[str, Any]:
    """Who the container runs as: also in the groups that its CDI devices bring."""
    wanted = user(container.record.config, image.config)
    extra = document["process"].get("user", {}).get("additionalGids", ())
    return replace(wanted, supplemental=(*wanted.supplemental, *extra)).document()


def _rootfs(node: Node, container: Container, image: Image) -> dict[str, Any]:
    layer = node.paths.writable_layer(container.record.id)
    mapped = user_namespaces.mapping(container.sandbox.record.config)
    return {
        "lowerdirs": node.images.lower_dirs(image),
        "layer_mounts": str(node.paths.layer_mounts),
        "upper": str(layer / "upper"),
        "work": str(layer / "work"),
        "volatile": True,
        "userns": str(node.paths.namespace(container.record.sandbox_id, "user")) if mapped is not None else "",
    }
