"""The OCI configuration of a container, put together (OCI runtime spec, config.md).

The version that is written is the oldest that has all fields used, because crun 1.8 refuses newer ones than it knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from proto import api_pb2 as cri
from proto import oci_annotations
from proto.errors import invalid
from runtime.oci import (
    apparmor,
    asked,
    base_spec,
    cdi,
    devices,
    hooks,
    mounts,
    process,
    resources,
    seccomp,
    systemd_limits,
    ulimits,
    user_namespaces,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imagesvc.store.images import OciConfig
    from runtime.config.settings import Config, HandlerConfig
    from runtime.host.handlers import Features
    from runtime.host.host import Host
    from runtime.oci.cdi_spec import Edits
    from runtime.oci.hooks import HookFile
    from runtime.oci.mounts import Source
    from runtime.oci.selinux import Labels

OCI_VERSION: Final = "1.0.2"


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """What the node's administrator adds, as read for one container."""

    base: dict[str, Any] = field(default_factory=dict)
    """The handler's base specification."""
    devices: Sequence[Edits] = ()
    """What the CDI devices of the container stand for."""
    hooks: Sequence[HookFile] = ()
    apparmor_profiles: frozenset[str] = frozenset()
    """Those that are loaded in the kernel."""
    block_io: dict[str, Any] | None = None
    rdt: dict[str, Any] | None = None
    """Both for the class that the pod's annotations name."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that the configuration is made from; nothing is looked up while it is made, but device nodes."""

    container_id: str
    config: cri.ContainerConfig
    sandbox_id: str
    sandbox: cri.PodSandboxConfig
    image: OciConfig
    sandbox_directory: Path
    cgroups_path: str
    sources: Sequence[Source]
    """Of the client's mounts, in their order."""
    target_pid: int
    """Init of the container whose PID namespace is shared; 0 if none is."""
    hostname: str
    daemon: Config
    handler: HandlerConfig
    features: Features
    host: Host
    files: NodeFiles
    labels: Labels | None
    """None where SELinux is off."""


def build(inputs: Inputs) -> dict[str, Any]:
    """The content of config.json, without `process.user`, which the shim adds."""
    config, context = inputs.config, inputs.config.linux.security_context
    options = context.namespace_options
    if context.privileged and not inputs.sandbox.linux.security_context.privileged:
        raise invalid(f"container {config.metadata.name} is privileged, but its sandbox is not")
    mounted = _mounts(inputs)
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "root": {"path": "rootfs", "readonly": context.readonly_rootfs},
        "process": process.build(config, inputs.image, inputs.hostname, _rlimits(inputs), inputs.host),
        "mounts": mounted,
        "annotations": _annotations(inputs),
        "linux": _linux(inputs, options, mounted),
    }
    profile = apparmor.select(
        context, inputs.host, inputs.files.apparmor_profiles, inputs.daemon.containers.apparmor_profile
    )
    if profile is not None:
        spec["process"]["apparmorProfile"] = profile
    if inputs.labels is not None:
        spec["process"]["selinuxLabel"] = inputs.labels.process
        spec["linux"]["mountLabel"] = inputs.labels.file
    spec = base_spec.lay_over(inputs.files.base, spec)
    if inputs.host.systemd_cgroups and inputs.host.cgroup_v2:
        spec["annotations"].update(systemd_limits.new_annotations(spec["linux"]["resources"]))
    cdi.apply(spec, inputs.files.devices, context.run_as_user.value)
    annotations = {**inputs.sandbox.annotations, **config.annotations}
    hooks.apply(spec, inputs.files.hooks, annotations, bind_mounts=bool(config.mounts))
    return spec


def _rlimits(inputs: Inputs) -> list[dict[str, Any]]:
    wanted = ulimits.of_annotations(inputs.sandbox.annotations, inputs.config)
    return ulimits.build(inputs.daemon.containers.limits(), base_spec.rlimits(inputs.files.base) | wanted, inputs.host)


def _mounts(inputs: Inputs) -> list[dict[str, Any]]:
    context = inputs.config.linux.security_context
    shared = inputs.sandbox.linux.security_context.namespace_options
    host_network, host_ipc = shared.network == cri.NODE, shared.ipc == cri.NODE
    defaults = mounts.default_mounts(
        privileged=context.privileged, cgroup_v2=inputs.host.cgroup_v2, mqueue=inputs.host.has_mqueue
    )
    if user_namespaces.mapping(inputs.sandbox) is not None:
        replaced = mounts.host_view_mounts(network=host_network, ipc=host_ipc)
        defaults = [replaced.get(mount["destination"], mount) for mount in defaults]
    base = inputs.files.base.get("mounts", [])
    taken = {mount["destination"] for mount in base}
    defaults = [mount for mount in defaults if mount["destination"] not in taken] + base
    defaults += mounts.pod_files(inputs.sandbox_directory, host_ipc=host_ipc, readonly=context.readonly_rootfs)
    clients = [
        mounts.client_mount(mount, source, rro=inputs.features.recursive_read_only)
        for mount, source in zip(inputs.config.mounts, inputs.sources, strict=True)
    ]
    return mounts.arrange(defaults, clients + asked.tmpfs(inputs.sandbox.annotations, inputs.config))


def _annotations(inputs: Inputs) -> dict[str, str]:
    metadata = inputs.sandbox.metadata
    return {
        **opened(inputs.sandbox.annotations, inputs.handler.pod_annotations),
        **opened(inputs.config.annotations, inputs.handler.container_annotations),
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": inputs.sandbox_id,
        "io.kubernetes.cri.sandbox-name": metadata.name,
        "io.kubernetes.cri.sandbox-namespace": metadata.namespace,
        "io.kubernetes.cri.sandbox-uid": metadata.uid,
        "io.kubernetes.cri.container-name": inputs.config.metadata.name,
        # crun would put limits and processes in a group below the systemd scope, where the kubelet and cAdvisor do not look.
        "run.oci.systemd.subgroup": "",
    }


def opened(annotations: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """Of a pod's annotations those that the administrator has opened; a filter is nothing that a pod chooses."""
    return {
        key: value
        for key, value in annotations.items()
        if key != oci_annotations.FILTER and any(fnmatchcase(key, pattern) for pattern in patterns)
    }


def _linux(inputs: Inputs, options: cri.NamespaceOption, mounted: list[dict[str, Any]]) -> dict[str, Any]:
    context = inputs.config.linux.security_context
    limits = resources.build(inputs.config.linux.resources, inputs.host)
    nodes, limits["devices"] = _devices(inputs)
    linux: dict[str, Any] = {
        "namespaces": _namespaces(inputs, options),
        "cgroupsPath": inputs.cgroups_path,
        "resources": limits,
        "devices": nodes,
    }
    if not context.privileged:
        linux["maskedPaths"] = list(context.masked_paths)
        linux["readonlyPaths"] = list(context.readonly_paths)
    propagations = {option for mount in mounted for option in mount["options"]}
    for propagation in ("rshared", "rslave"):  # the root has to pass on at least what its volumes do
        if propagation in propagations:
            linux["rootfsPropagation"] = propagation
            break
    capabilities = frozenset(process.capabilities(inputs.config, inputs.host)["bounding"])
    profile = inputs.daemon.containers.seccomp_profile
    rules = seccomp.select(
        context,
        capabilities,
        available=inputs.host.has_seccomp,
        profile=Path(profile) if profile else seccomp.DEFAULT_PROFILE,
    )
    if rules is not None:
        linux["seccomp"] = rules
    if inputs.files.block_io is not None:
        limits["blockIO"] = inputs.files.block_io
    if inputs.files.rdt is not None:
        linux["intelRdt"] = inputs.files.rdt
    if (mapped := user_namespaces.mapping(inputs.sandbox)) is not None:
        linux["uidMappings"], linux["gidMappings"] = mapped.uids.oci(), mapped.gids.oci()
    return linux


def _namespaces(inputs: Inputs, options: cri.NamespaceOption) -> list[dict[str, str]]:
    """Network, IPC and host name are the sandbox's, whatever the container's own options say; PID is the container's."""
    shared = inputs.sandbox.linux.security_context.namespace_options
    pins = inputs.sandbox_directory / "ns"
    namespaces: list[dict[str, str]] = [{"type": "mount"}]
    if shared.network != cri.NODE:
        namespaces.append({"type": "network", "path": str(pins / "net")})
        namespaces.append({"type": "uts", "path": str(pins / "uts")})
    if shared.ipc != cri.NODE:
        namespaces.append({"type": "ipc", "path": str(pins / "ipc")})
    if user_namespaces.mapping(inputs.sandbox) is not None:
        namespaces.append({"type": "user", "path": str(pins / "user")})
    if options.pid == cri.POD:
        namespaces.append({"type": "pid", "path": str(pins / "pid")})
    elif options.pid == cri.CONTAINER:
        namespaces.append({"type": "pid"})
    elif options.pid == cri.TARGET:
        namespaces.append({"type": "pid", "path": f"/proc/{inputs.target_pid}/ns/pid"})
    if inputs.host.cgroup_v2 and not inputs.config.linux.security_context.privileged:
        namespaces.append({"type": "cgroup"})
    return namespaces


def _devices(inputs: Inputs) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    context = inputs.config.linux.security_context
    if context.privileged:
        nodes, rules = devices.privileged(nodes=not inputs.handler.privileged_without_host_devices)
        if not inputs.config.devices:
            return nodes, rules
        extra, _ = devices.requested(inputs.config.devices, None)
        taken = {node["path"] for node in extra}
        return [node for node in nodes if node["path"] not in taken] + extra, rules
    owner = None
    if inputs.daemon.containers.device_ownership_from_security_context and context.HasField("run_as_user"):
        owner = (context.run_as_user.value, context.run_as_group.value)
    return devices.requested(inputs.config.devices, owner)
