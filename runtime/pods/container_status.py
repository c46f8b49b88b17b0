"""ContainerStatus and ListContainers: read from memory, without a lock."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from google.protobuf import json_format

from proto import api_pb2 as cri
from runtime import listing
from runtime.filters import labels_match
from runtime.lifecycle import ContainerState
from runtime.oci import document, stop_signals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from runtime.paths import Paths
    from runtime.pods.objects import Container

STATES: Final = {
    ContainerState.CREATED: cri.CONTAINER_CREATED,
    ContainerState.RUNNING: cri.CONTAINER_RUNNING,
    ContainerState.EXITED: cri.CONTAINER_EXITED,
    ContainerState.UNKNOWN: cri.CONTAINER_UNKNOWN,
}


def status(container: Container) -> cri.ContainerStatus:
    """The container as ContainerStatus shows it."""
    record = container.record
    config = record.config
    reply = cri.ContainerStatus(
        id=record.id,
        metadata=config.metadata,
        state=STATES.get(record.state, cri.CONTAINER_UNKNOWN),
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        image=_image(container),
        image_ref=record.image_ref or record.image_id,
        image_id=record.image_id,
        reason=record.reason,
        message=record.message,
        labels=config.labels,
        annotations=config.annotations,
        mounts=config.mounts,
        log_path=record.log_path,
        stop_signal=cri.Signal.Name(stop_signals.TO_CRI.get(record.stop_signal, cri.SIGNAL_RUNTIME_DEFAULT)),
    )
    reply.resources.linux.CopyFrom(record.resources)
    volumes = (mount for mount in reply.mounts if mount.image.image)
    for mount, image_id in zip(volumes, record.volume_images, strict=True):
        mount.image.image_ref = image_id
    reply.user.linux.uid = record.uid
    reply.user.linux.gid = record.gid
    reply.user.linux.supplemental_groups.extend(record.groups)
    return reply


def _image(container: Container) -> cri.ImageSpec:
    """What the client said, with the name that is stored here."""
    spec = cri.ImageSpec()
    spec.CopyFrom(container.record.config.image)
    spec.image = container.record.image_name or spec.user_specified_image or spec.image
    return spec


def verbose(container: Container, paths: Paths) -> dict[str, str]:
    """For people: `crictl inspect`."""
    record = container.record
    bundle = paths.bundle(record.id)
    info = {
        "sandboxID": record.sandbox_id,
        "pid": record.pid if container.shim is not None else 0,
        "bundle": str(bundle),
        "writableLayer": str(paths.writable_layer(record.id)),
        "cgroup": record.cgroup,
        "runtimeHandler": record.handler,
        "terminal": record.config.tty,
        "attached": container.attached,
        "config": json_format.MessageToDict(record.config, preserving_proto_field_name=True),
    }
    try:
        info["runtimeSpec"] = document.shown((bundle / "config.json").read_bytes())
    except (OSError, ValueError):
        pass  # not made yet, or gone with a reboot
    return {"info": json.dumps(info)}


def entry(container: Container, state: ContainerState | None = None) -> bytes:
    """The container as ListContainers and its streamed form show it: an encoded entry of the list.

    Only the state ever changes, and kubelets list every second: the entry is kept. `state`: one that it had before.
    """
    state = state or container.record.state
    if container.listed is None or container.listed[0] is not state:
        container.listed = (state, listing.entry(_item(container, state).SerializeToString()))
    return container.listed[1]


def _item(container: Container, state: ContainerState) -> cri.Container:
    record = container.record
    return cri.Container(
        id=record.id,
        pod_sandbox_id=record.sandbox_id,
        metadata=record.config.metadata,
        image=_image(container),
        # PullImageResponse.image_ref, Image.id and these two must be the same text, or images in use are collected.
        image_ref=record.image_id,
        image_id=record.image_id,
        created_at=record.created_at,
        labels=record.config.labels,
        annotations=record.config.annotations,
        state=STATES.get(state, cri.CONTAINER_UNKNOWN),
    )


def select(containers: Iterable[Container], criteria: cri.ContainerFilter) -> Iterator[Container]:
    """Those that match all that the filter sets; those in the making match nothing."""
    state = criteria.state.state if criteria.HasField("state") else None
    for container in list(containers):
        record = container.record
        if record.state is ContainerState.CREATING:
            continue
        if criteria.id and not record.id.startswith(criteria.id):
            continue
        if criteria.pod_sandbox_id and not record.sandbox_id.startswith(criteria.pod_sandbox_id):
            continue
        if state is not None and STATES[record.state] != state:
            continue
        if not labels_match(record.config.labels, criteria.label_selector):
            continue
        if container.sandbox.shown_to(criteria.label_selector):
            yield container
