"""Pods and containers as NRI plugins see them: made of what is recorded, and of the OCI configuration.

Of a container that is being created the configuration is the one that the OCI runtime would get without plugins; who it
runs as is known by then if the request says it with a number, for names are looked up in the mounted image later.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any, Final

from proto import api_pb2 as cri
from proto import nri_pb2 as nri
from runtime.lifecycle import ContainerState
from runtime.oci import user_namespaces
from runtime.oci.hooks import STAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from runtime.paths import Paths
    from runtime.records import ContainerRecord, SandboxRecord

STATES: Final = {
    ContainerState.CREATING: nri.CONTAINER_UNKNOWN,
    ContainerState.CREATED: nri.CONTAINER_CREATED,
    ContainerState.RUNNING: nri.CONTAINER_RUNNING,
    ContainerState.EXITED: nri.CONTAINER_STOPPED,
    ContainerState.UNKNOWN: nri.CONTAINER_UNKNOWN,
}

HOOKS: Final = dict(
    zip(STAGES, ("prestart", "create_runtime", "create_container", "start_container", "poststart", "poststop"), strict=True)
)
"""OCI's names of the stages, and NRI's."""

_MEMORY: Final = {
    "limit": "limit",
    "reservation": "reservation",
    "swap": "swap",
    "kernel": "kernel",
    "kernelTCP": "kernel_tcp",
    "swappiness": "swappiness",
    "disableOOMKiller": "disable_oom_killer",
    "useHierarchy": "use_hierarchy",
}
_CPU: Final = {
    "shares": "shares",
    "quota": "quota",
    "period": "period",
    "realtimeRuntime": "realtime_runtime",
    "realtimePeriod": "realtime_period",
}
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_INT64: Final = (1 << 63) - 1


def pod_message(record: SandboxRecord, paths: Paths, *, stopped: bool = False) -> nri.PodSandbox:
    """A pod. Its namespaces are those that are pinned for it; there are none once it has `stopped`."""
    config = record.config
    message = nri.PodSandbox(
        id=record.id,
        name=config.metadata.name,
        uid=config.metadata.uid,
        namespace=config.metadata.namespace,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=record.handler,
        pid=record.pause_pid,
        ips=record.ips,
    )
    message.linux.pod_overhead.CopyFrom(linux_resources(record.overhead))
    message.linux.pod_resources.CopyFrom(linux_resources(record.resources))
    message.linux.cgroup_parent = config.linux.cgroup_parent
    message.linux.cgroups_path = f"/{record.cgroup}" if record.cgroup else ""
    if not stopped:
        for kind, path in _pinned(record, paths).items():
            message.linux.namespaces.add(type=kind, path=path)
    return message


def _pinned(record: SandboxRecord, paths: Paths) -> dict[str, str]:
    """Those that the containers share; the network's path is the one that CNI plugins are told."""
    options = record.config.linux.security_context.namespace_options
    found = {}
    if options.network != cri.NODE:
        found = {"network": str(paths.netns(record.id)), "uts": str(paths.namespace(record.id, "uts"))}
    if options.ipc != cri.NODE:
        found["ipc"] = str(paths.namespace(record.id, "ipc"))
    if options.pid == cri.POD:
        found["pid"] = str(paths.namespace(record.id, "pid"))
    if user_namespaces.mapping(record.config) is not None:
        found["user"] = str(paths.namespace(record.id, "user"))
    return found


def linux_resources(asked: cri.LinuxContainerResources) -> nri.LinuxResources:
    """Of CRI's; what asks for nothing is left out."""
    message = nri.LinuxResources()
    _lay(asked, message)
    return message


def _lay(asked: cri.LinuxContainerResources, message: nri.LinuxResources) -> None:
    pairs = (
        (message.memory, "limit", asked.memory_limit_in_bytes),
        (message.memory, "swap", asked.memory_swap_limit_in_bytes),
        (message.cpu, "quota", asked.cpu_quota),
        (message.cpu, "period", max(0, asked.cpu_period)),
        (message.cpu, "shares", max(0, asked.cpu_shares)),
    )
    for part, name, number in pairs:
        if number:
            getattr(part, name).value = number
    message.cpu.cpus = asked.cpuset_cpus or message.cpu.cpus
    message.cpu.mems = asked.cpuset_mems or message.cpu.mems
    if asked.hugepage_limits:
        del message.hugepage_limits[:]
        message.hugepage_limits.extend(
            nri.HugepageLimit(page_size=p.page_size, limit=p.limit) for p in asked.hugepage_limits
        )
    message.unified.update(asked.unified)


def container_message(record: ContainerRecord, spec: Mapping[str, Any]) -> nri.Container:
    """A container with its OCI configuration, which may be empty where it is not known any more."""
    config, process = record.config, spec.get("process", {})
    message = nri.Container(
        id=record.id,
        pod_sandbox_id=record.sandbox_id,
        name=config.metadata.name,
        state=STATES[record.state],
        labels=config.labels,
        annotations={**_texts(spec.get("annotations", {})), **config.annotations},
        args=map(_text, process.get("args", ())),
        env=map(_text, process.get("env", ())),
        mounts=map(_mount, spec.get("mounts", ())),
        pid=record.pid if not record.finished_at else 0,
        rlimits=[_rlimit(limit) for limit in process.get("rlimits", ())],
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        status_reason=record.reason,
        status_message=record.message,
        CDI_devices=[nri.CDIDevice(name=device.name) for device in config.CDI_devices],
        user=_user(record, process),
        image=_image(record),
    )
    for stage, name in HOOKS.items():
        getattr(message.hooks, name).extend(map(_hook, spec.get("hooks", {}).get(stage, ())))
    _linux(message.linux, spec.get("linux", {}), process)
    _lay(record.resources, message.linux.resources)
    context = config.linux.security_context
    if context.HasField("seccomp"):
        message.linux.seccomp_profile.profile_type = int(context.seccomp.profile_type)  # type: ignore[assignment]
        message.linux.seccomp_profile.localhost_ref = context.seccomp.localhost_ref
    return message


def _text(text: str) -> str:
    """As the OCI runtime gets it: what is not UTF-8 is U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def _texts(table: Mapping[str, str]) -> dict[str, str]:
    return {_text(key): _text(value) for key, value in table.items()}


def _mount(mount: Mapping[str, Any]) -> nri.Mount:
    return nri.Mount(
        destination=_text(mount["destination"]),
        type=mount.get("type", ""),
        source=_text(mount.get("source", "")),
        options=map(_text, mount.get("options", ())),
    )


def _hook(hook: Mapping[str, Any]) -> nri.Hook:
    message = nri.Hook(path=hook["path"], args=hook.get("args", ()), env=hook.get("env", ()))
    if "timeout" in hook:
        message.timeout.value = hook["timeout"]
    return message


def _rlimit(limit: Mapping[str, Any]) -> nri.POSIXRlimit:
    return nri.POSIXRlimit(type=limit["type"], hard=limit["hard"], soft=limit["soft"])


def _user(record: ContainerRecord, process: Mapping[str, Any]) -> nri.User | None:
    if record.made_at:
        return nri.User(uid=record.uid, gid=record.gid, additional_gids=record.groups)
    context = record.config.linux.security_context
    if not context.HasField("run_as_user") or not 0 <= context.run_as_user.value < 1 << 32:
        return None
    groups = [*context.supplemental_groups, *process.get("user", {}).get("additionalGids", ())]
    return nri.User(
        uid=context.run_as_user.value,
        gid=context.run_as_group.value & 0xFFFFFFFF,
        additional_gids=[group for group in groups if 0 <= group < 1 << 32],
    )


def _image(record: ContainerRecord) -> nri.Image:
    return nri.Image(
        name=record.image_name or record.config.image.user_specified_image or record.config.image.image,
        digest=record.image_ref.partition("@")[2],
        config_digest=record.image_id,
    )


def _linux(message: nri.LinuxContainer, linux: Mapping[str, Any], process: Mapping[str, Any]) -> None:
    for namespace in linux.get("namespaces", ()):
        message.namespaces.add(type=namespace["type"], path=namespace.get("path", ""))
    for device in linux.get("devices", ()):
        message.devices.append(_device(device))
    _resources(message.resources, linux.get("resources", {}))
    if "oomScoreAdj" in process:
        message.oom_score_adj.value = process["oomScoreAdj"]
    message.cgroups_path = linux.get("cgroupsPath", "")
    if (priority := process.get("ioPriority")) is not None:
        message.io_priority.CopyFrom(
            nri.LinuxIOPriority(
                priority=priority.get("priority", 0), **{"class": _number(nri.IOPrioClass, priority["class"])}
            )
        )
    if (seccomp := linux.get("seccomp")) is not None:
        # Read anew of what it was made into before: there are as many rules as calls, and few policies on a node.
        message.seccomp_policy.ParseFromString(_encoded_seccomp(json.dumps(seccomp)))
    message.sysctl.update(linux.get("sysctl", {}))
    for name, device in linux.get("netDevices", {}).items():
        message.net_devices[name].name = device.get("name", "")
    if (scheduler := process.get("scheduler")) is not None:
        plain = {key: scheduler[key] for key in ("nice", "priority", "runtime", "deadline", "period") if key in scheduler}
        message.scheduler.CopyFrom(
            nri.LinuxScheduler(policy=_number(nri.LinuxSchedulerPolicy, scheduler["policy"]), **plain)
        )
        message.scheduler.flags.extend(_number(nri.LinuxSchedulerFlag, flag) for flag in scheduler.get("flags", ()))
    if (rdt := linux.get("intelRdt")) is not None:
        message.rdt.clos_id.value = rdt.get("closID", "")
        message.rdt.schemata.value.extend(rdt.get("schemata", ()))
        message.rdt.enable_monitoring.value = rdt.get("enableMonitoring", False)


def _number(enum: Any, name: str) -> Any:
    """0 for a name that NRI does not know."""
    return dict(enum.items()).get(name, 0)


def _device(device: Mapping[str, Any]) -> nri.LinuxDevice:
    message = nri.LinuxDevice(
        path=device["path"], type=device.get("type", ""), major=device.get("major", 0), minor=device.get("minor", 0)
    )
    for key, name in (("fileMode", "file_mode"), ("uid", "uid"), ("gid", "gid")):
        if device.get(key) is not None:
            getattr(message, name).value = device[key]
    return message


def _resources(message: nri.LinuxResources, resources: Mapping[str, Any]) -> None:
    for part, names, target in (("memory", _MEMORY, message.memory), ("cpu", _CPU, message.cpu)):
        for key, name in names.items():
            if key in resources.get(part, {}):
                getattr(target, name).value = resources[part][key]
    message.cpu.cpus = resources.get("cpu", {}).get("cpus", "")
    message.cpu.mems = resources.get("cpu", {}).get("mems", "")
    for page in resources.get("hugepageLimits", ()):
        message.hugepage_limits.add(page_size=page["pageSize"], limit=page["limit"])
    for rule in resources.get("devices", ()):
        message.devices.append(_rule(rule))
    message.unified.update(resources.get("unified", {}))
    if "limit" in resources.get("pids", {}):
        message.pids.limit = resources["pids"]["limit"]


def _rule(rule: Mapping[str, Any]) -> nri.LinuxDeviceCgroup:
    message = nri.LinuxDeviceCgroup(allow=rule["allow"], type=rule.get("type", ""), access=rule.get("access", ""))
    for name in ("major", "minor"):
        if rule.get(name) is not None:
            getattr(message, name).value = rule[name]
    return message


@functools.lru_cache(16)
def _encoded_seccomp(document: str) -> bytes:
    return _seccomp(json.loads(document)).SerializeToString()


def _seccomp(seccomp: Mapping[str, Any]) -> nri.LinuxSeccomp:
    message = nri.LinuxSeccomp(
        default_action=seccomp.get("defaultAction", ""),
        architectures=seccomp.get("architectures", ()),
        flags=seccomp.get("flags", ()),
        listener_path=seccomp.get("listenerPath", ""),
        listener_metadata=seccomp.get("listenerMetadata", ""),
        syscalls=map(_syscall, seccomp.get("syscalls", ())),
    )
    if "defaultErrnoRet" in seccomp:
        message.default_errno.value = seccomp["defaultErrnoRet"]
    return message


def _syscall(rule: Mapping[str, Any]) -> nri.LinuxSyscall:
    message = nri.LinuxSyscall(names=rule.get("names", ()), action=rule.get("action", ""), args=_arguments(rule))
    if "errnoRet" in rule:
        message.errno_ret.value = rule["errnoRet"]
    return message


def _arguments(rule: Mapping[str, Any]) -> Iterable[nri.LinuxSeccompArg]:
    for argument in rule.get("args", ()):
        yield nri.LinuxSeccompArg(
            index=argument["index"],
            value=argument["value"],
            value_two=argument.get("valueTwo", 0),
            op=argument["op"],
        )
