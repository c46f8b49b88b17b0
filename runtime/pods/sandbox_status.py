"""PodSandboxStatus and ListPodSandbox: read from memory, without a lock."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import json_format

from proto import api_pb2 as cri
from proto.errors import not_found
from runtime import listing
from runtime.filters import labels_match
from runtime.lifecycle import ContainerState, SandboxState
from runtime.oci import user_namespaces
from runtime.pods import container_status
from runtime.records import CLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from runtime.host.handlers import Handlers
    from runtime.paths import Paths
    from runtime.pods.objects import Sandbox
    from runtime.records import SandboxRecord

STATES: Final = {SandboxState.READY: cri.SANDBOX_READY, SandboxState.STOPPED: cri.SANDBOX_NOTREADY}


def status(sandbox: Sandbox) -> cri.PodSandboxStatus:
    """The sandbox as PodSandboxStatus shows it."""
    record = sandbox.record
    options = record.config.linux.security_context.namespace_options
    reply = cri.PodSandboxStatus(
        id=record.id,
        metadata=record.config.metadata,
        state=STATES.get(record.state, cri.SANDBOX_NOTREADY),
        created_at=record.created_at,
        linux=cri.LinuxPodSandboxStatus(namespaces=cri.Namespace(options=options)),
        labels=record.config.labels,
        annotations=record.config.annotations,
        runtime_handler=record.handler,
    )
    reply.network.SetInParent()
    if record.ips:
        reply.network.ip = record.ips[0]
        reply.network.additional_ips.extend(cri.PodIP(ip=address) for address in record.ips[1:])
    return reply


def response(sandbox: Sandbox, info: dict[str, str]) -> cri.PodSandboxStatusResponse:
    """The sandbox and its containers as of one moment, and that moment."""
    if sandbox.record.state is SandboxState.CREATING:
        raise not_found(f"sandbox {sandbox.record.id} is being made")
    listed = [c for c in sandbox.containers.values() if c.record.state is not ContainerState.CREATING]
    return cri.PodSandboxStatusResponse(
        status=status(sandbox),
        info=info,
        containers_statuses=map(container_status.status, listed),
        timestamp=CLOCK.next_of(sandbox.record.config.metadata.uid),
    )


def verbose(sandbox: Sandbox, paths: Paths, handlers: Handlers) -> dict[str, str]:
    """For people and their scripts: `crictl inspectp`, with the fields that containerd and CRI-O have too."""
    record = sandbox.record
    return {
        "info": json.dumps(
            {
                "sandboxID": record.id,
                "directory": str(paths.sandbox(record.id)),
                "cgroupParent": record.cgroup_parent,
                "pid": _pid(sandbox),
                "runtimeSpec": _runtime_spec(record, paths),
                "config": json_format.MessageToDict(record.config, preserving_proto_field_name=True),
                "network": record.network,
                "message": record.message,
                "resources": json_format.MessageToDict(record.resources, preserving_proto_field_name=True),
                "overhead": json_format.MessageToDict(record.overhead, preserving_proto_field_name=True),
                # It may work no more, or be configured no more.
                "runtimeHandler": record.handler or handlers.default,
            }
        )
    }


def _pid(sandbox: Sandbox) -> int:
    """A process in the sandbox's namespaces: `nsenter --target PID --net` is what it is asked for. 0 if none runs.

    A sandbox needs no process of its own: the init of a container is in the same network, IPC and UTS namespaces.
    """
    running = (c.record.pid for c in sandbox.containers.values() if c.record.state is ContainerState.RUNNING)
    return sandbox.record.pause_pid or next((pid for pid in running if pid), 0)


def _runtime_spec(record: SandboxRecord, paths: Paths) -> dict[str, Any]:
    """What an OCI configuration would say of the sandbox; it has no root and no process."""
    options = record.config.linux.security_context.namespace_options
    pinned = ["uts"] if options.network != cri.NODE else []
    pinned += ["ipc"] if options.ipc != cri.NODE else []
    mapped = user_namespaces.mapping(record.config)
    pinned += ["user"] if mapped is not None else []
    pinned += ["pid"] if record.pause_pid else []
    namespaces = [{"type": kind, "path": str(paths.namespace(record.id, kind))} for kind in pinned]
    if options.network != cri.NODE:
        namespaces.insert(0, {"type": "network", "path": str(paths.netns(record.id))})
    spec: dict[str, Any] = {
        "hostname": record.hostname(),
        "annotations": dict(record.config.annotations),
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": record.cgroup,
            "sysctl": dict(record.config.linux.sysctls),
        },
    }
    if mapped is not None:
        spec["linux"] |= {"uidMappings": mapped.uids.oci(), "gidMappings": mapped.gids.oci()}
    return spec


def entry(sandbox: Sandbox, state: SandboxState | None = None) -> bytes:
    """The sandbox as ListPodSandbox and its streamed form show it: an encoded entry of the list.

    Only the state ever changes, and kubelets list every second: the entry is kept. `state`: one that it had before.
    """
    state = state or sandbox.record.state
    if sandbox.listed is None or sandbox.listed[0] is not state:
        sandbox.listed = (state, listing.entry(_item(sandbox, state).SerializeToString()))
    return sandbox.listed[1]


def _item(sandbox: Sandbox, state: SandboxState) -> cri.PodSandbox:
    record = sandbox.record
    return cri.PodSandbox(
        id=record.id,
        metadata=record.config.metadata,
        created_at=record.created_at,
        labels=record.config.labels,
        annotations=record.config.annotations,
        runtime_handler=record.handler,
        state=STATES.get(state, cri.SANDBOX_NOTREADY),
    )


def select(sandboxes: Iterable[Sandbox], criteria: cri.PodSandboxFilter) -> Iterator[Sandbox]:
    """Those that match all that the filter sets; those in the making match nothing."""
    state = criteria.state.state if criteria.HasField("state") else None
    for sandbox in list(sandboxes):
        record = sandbox.record
        if record.state is SandboxState.CREATING:
            continue
        if criteria.id and not record.id.startswith(criteria.id):
            continue
        if state is not None and STATES[record.state] != state:
            continue
        if labels_match(record.config.labels, criteria.label_selector) and sandbox.shown_to(criteria.label_selector):
            yield sandbox
