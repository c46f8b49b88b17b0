"""What a container's OCI configuration is made from: its request, its pod, and files of the node's administrator.

The administrator's files (CDI specifications, hooks, base specification) are read for each container, for drivers and
packages write them while the daemon runs.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel import cgroups, lsm
from proto.errors import invalid
from runtime.oci import apparmor_loader, base_spec, cdi, classes, hooks, spec
from runtime.pods import image_volumes, selinux
from runtime.pods.host_paths import find_sources

if TYPE_CHECKING:
    from collections.abc import Callable

    from imagesvc.store.images import Image
    from runtime.oci.mounts import Source
    from runtime.oci.spec import NodeFiles
    from runtime.pods.node import Node
    from runtime.pods.objects import Container


async def build(
    node: Node, container: Container, image: Image, target_pid: int, first: Callable[[], None]
) -> dict[str, Any]:
    """The content of config.json, without the user, which the shim finds in the image.

    `first` is done in the pool before, on the way: each way there and back costs more than what is done.
    """
    record, sandbox = container.record, container.sandbox.record
    handler = node.handlers.get(sandbox.handler)
    await apparmor_loader.ensure_default(node.host, node.config.containers.apparmor_profile)
    sources = await _sources(node, container)
    labels = selinux.labels_of(node, container)
    if labels is not None:
        await selinux.relabel_volumes(node.fork_server, record.config, labels)

    def work() -> dict[str, Any]:
        first()
        inputs = spec.Inputs(
            container_id=record.id,
            config=record.config,
            sandbox_id=sandbox.id,
            sandbox=sandbox.config,
            image=image.config,
            sandbox_directory=node.paths.sandbox(sandbox.id),
            cgroups_path=cgroups.oci_path(sandbox.cgroup_parent, record.id, node.host.systemd_cgroups),
            sources=sources,
            target_pid=target_pid,
            hostname=sandbox.hostname(),
            daemon=node.config,
            handler=handler.config,
            features=handler.features,
            host=node.host,
            files=_read_files(node, container),
            labels=labels,
        )
        return spec.build(inputs)

    return await asyncio.get_running_loop().run_in_executor(node.blocking, work)


def _read_files(node: Node, container: Container) -> NodeFiles:
    config, pod = container.record.config, container.sandbox.record.config
    settings = node.config.containers
    base = node.handlers.get(container.sandbox.record.handler).config.base_spec
    devices = cdi.requested(config)
    rdt = classes.chosen(classes.RDT, pod.annotations, config.metadata.name)
    block_io = classes.chosen(classes.BLOCK_IO, pod.annotations, config.metadata.name)
    return spec.NodeFiles(
        base=base_spec.load(Path(base)) if base else {},
        devices=cdi.find([Path(directory) for directory in settings.cdi_spec_dirs], devices) if devices else (),
        hooks=hooks.load([Path(directory) for directory in settings.hooks_dirs]),
        apparmor_profiles=lsm.apparmor_profiles() if node.host.has_apparmor else frozenset(),
        block_io=classes.block_io(block_io, settings.blockio_config_file) if block_io else None,
        rdt=classes.rdt(rdt) if rdt else None,
    )


async def _sources(node: Node, container: Container) -> list[Source]:
    """Where the client's mounts come from: host paths, or images that the shim mounts."""
    mounts = container.record.config.mounts
    for mount in mounts:
        if not mount.host_path and not mount.image.image:
            raise invalid(f"mount {mount.container_path} has neither a host path nor an image")
    found = await find_sources(node.fork_server, list(dict.fromkeys(m.host_path for m in mounts if m.host_path)))
    volumes = (image_volumes.source(node.paths.bundle(container.record.id), index) for index in itertools.count())
    return [found[mount.host_path] if mount.host_path else next(volumes) for mount in mounts]
