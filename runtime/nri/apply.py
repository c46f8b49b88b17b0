"""Plugins' adjustments, laid over a container's OCI configuration before anything is derived from it.

What each means is defined by NRI's generator (github.com/containerd/nri, pkg/runtime-tools/generate), in this order:

    annotations, env, args, hooks, CDI devices, devices, cgroups path, OOM score, I/O priority, scheduler, seccomp policy,
    namespaces, sysctls, network devices, memory policy, resources, classes, RDT, mounts, rlimits

An adjustment that cannot be applied is `Refused`, and the container is not created: to start it without what a plugin has
asked for would be a lie. The systemd properties of its scope are made anew of the resources that it ends up with.
"""

from __future__ import annotations

import copy
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kernel import cgroups
from proto import api_pb2 as cri
from proto import nri_pb2 as nri
from proto.errors import CrispError, invalid
from runtime.nri import amounts, placed
from runtime.nri.errors import Refused
from runtime.nri.messages import HOOKS
from runtime.nri.owners import removed
from runtime.oci import cdi, classes, seccomp_json, systemd_limits
from runtime.oci.resources import withheld

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.host.handlers import Features
    from runtime.host.host import Host

NAMESPACES: Final = frozenset(("cgroup", "ipc", "network", "pid", "time", "uts"))
"""Those that a plugin may change. crisp mounts the root file system by `mount`, and maps it by `user`."""

KEPT_ANNOTATION: Final = "run.oci.systemd.subgroup"
"""By it a container's processes are where the kubelet looks for them."""

SYSCTL: Final = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)+")
DEVICE: Final = re.compile(r"[^/\s:\0]{1,15}")
"""A network device's name (dev_valid_name in the kernel)."""

NICE: Final = range(-20, 20)
PRIORITIES: Final = range(1, 100)
"""Of the real-time policies (sched(7))."""
IO_PRIORITIES: Final = range(8)
REALTIME: Final = (nri.SCHED_FIFO, nri.SCHED_RR)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What has to be known of the container and of the node."""

    container_id: str
    config: cri.ContainerConfig
    resources: cri.LinuxContainerResources
    """As the kubelet asks for them."""
    host: Host
    handler: str
    """Its name, for messages."""
    features: Features
    """What its OCI runtime can do."""
    cdi_spec_dirs: Sequence[Path] = ()
    blockio_config_file: str = ""


@dataclass(frozen=True, slots=True)
class Adjusted:
    """What a container is made of after the plugins."""

    spec: dict[str, Any]
    """The OCI configuration."""
    resources: cri.LinuxContainerResources
    """To be recorded in place of the kubelet's."""
    cgroup: str
    """Where its control group is now, relative to the hierarchies' roots; empty if it is where it was."""
    relabel: tuple[str, ...] = ()
    """Host paths that get the container's SELinux label."""


def adjusted(spec: dict[str, Any], asked: nri.ContainerAdjustment, here: Circumstances) -> Adjusted:
    """The configuration with the adjustment; `spec` stays as it is. Blocks. Raises `Refused`."""
    new = copy.deepcopy(spec)
    derived = _properties(spec, here.host)
    with _refused(here.config.metadata.name):
        _process(new, asked)
        _cdi(new, asked, here)
        placed.devices(new["linux"], asked.linux.devices)
        cgroup = _cgroups_path(new["linux"], asked.linux.cgroups_path, here)
        resources = _oom_score(new["process"], asked.linux, here)
        _scheduling(new["process"], asked.linux)
        _linux(new, asked.linux, here)
        _runtime_parts(new["linux"], asked.linux, here)
        amounts.apply(new["linux"], resources, asked.linux.resources, here.host, here.blockio_config_file)
        _rdt(new["linux"], asked.linux, here)
        relabel = placed.mounts(new, asked.mounts)
        placed.rlimits(new["process"], asked.rlimits, here.host)
        resources = amounts.laid_over(resources, asked.linux.resources)
    kept = {key: value for key, value in new["annotations"].items() if derived.get(key) != value}
    new["annotations"] = {**kept, **_properties(new, here.host)}
    return Adjusted(new, resources, cgroup, relabel)


@contextmanager
def _refused(container: str) -> Iterator[None]:
    """What is wrong is no fault of the request: the error says whose."""
    try:
        yield
    except CrispError as error:
        raise Refused(f"what NRI plugins ask for cannot be given to container {container}: {error.message}") from error


def _properties(spec: dict[str, Any], host: Host) -> dict[str, str]:
    if not (host.systemd_cgroups and host.cgroup_v2):
        return {}
    return systemd_limits.new_annotations(spec["linux"].get("resources", {}))


def _process(spec: dict[str, Any], asked: nri.ContainerAdjustment) -> None:
    """Annotations, environment, arguments, hooks."""
    _lay(spec.setdefault("annotations", {}), asked.annotations, "annotation")
    if KEPT_ANNOTATION in {removed(key) or key for key in asked.annotations}:
        raise invalid(f"annotation {KEPT_ANNOTATION} is crisp's own")
    process = spec["process"]
    variables = {entry.partition("=")[0]: entry for entry in process.get("env", [])}
    for pair in asked.env:
        gone = removed(pair.key)
        if gone is not None:
            variables.pop(gone, None)
        elif not pair.key or "=" in pair.key:
            raise invalid(f"{pair.key!r} is no name of a variable")
        else:
            variables[pair.key] = f"{pair.key}={pair.value}"
    process["env"] = list(variables.values())
    if asked.args:
        if not asked.args[0]:
            raise invalid("the first argument is empty")
        process["args"] = list(asked.args)
    for stage, name in HOOKS.items():
        for hook in getattr(asked.hooks, name):
            spec.setdefault("hooks", {}).setdefault(stage, []).append(_hook(hook))


def _lay(target: dict[str, str], asked: Any, what: str) -> None:
    for marked, value in sorted(asked.items()):
        key = removed(marked)
        if key is not None:
            target.pop(key, None)
        elif marked:
            target[marked] = value
        else:
            raise invalid(f"an {what} has an empty key")


def _hook(hook: nri.Hook) -> dict[str, Any]:
    if not hook.path.startswith("/"):
        raise invalid(f"OCI hook {hook.path!r} is not an absolute path")
    found: dict[str, Any] = {"path": hook.path}
    if hook.args:
        found["args"] = list(hook.args)
    if hook.env:
        found["env"] = list(hook.env)
    if hook.HasField("timeout"):
        if hook.timeout.value <= 0:
            raise invalid(f"OCI hook {hook.path}: its timeout must be more than 0 seconds")
        found["timeout"] = hook.timeout.value
    return found


def _cdi(spec: dict[str, Any], asked: nri.ContainerAdjustment, here: Circumstances) -> None:
    """Devices that the request names too are there by now."""
    names = [device.name for device in asked.CDI_devices]
    if not names:
        return
    own = cdi.requested(here.config)
    cdi.check(names)
    edits = cdi.find(here.cdi_spec_dirs, dict.fromkeys([*own, *names]))
    known = cdi.find(here.cdi_spec_dirs, own) if own else []
    cdi.apply(spec, edits[len(known) :], here.config.linux.security_context.run_as_user.value)


def _cgroups_path(linux: dict[str, Any], path: str, here: Circumstances) -> str:
    """As the cgroup driver writes it: `slice:prefix:name`, or an absolute path. The new group is the container's alone."""
    if not path:
        return ""
    if here.host.systemd_cgroups:
        parent, prefix, name = [*path.split(":"), "", ""][:3]
        unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
        if path.count(":") != 2 or not parent.endswith(".slice") or not name or name.endswith(".slice") or "/" in unit:
            raise invalid(f"cgroups path {path!r} is not of the form SLICE:PREFIX:NAME, as systemd's driver has it")
        found = f"{cgroups.parent_path(parent)}/{unit}"
    else:
        found = path.strip("/")
    if not found or any(part in ("", ".", "..") for part in found.split("/")) or "\0" in found:
        raise invalid(f"cgroups path {path!r} is no path of a control group")
    group = here.host.hierarchies.group(found)
    if group.exists():
        raise invalid(f"cgroups path {path!r} is a group that is there, and its processes would end with the container")
    linux["cgroupsPath"] = path
    return found


def _oom_score(
    process: dict[str, Any], asked: nri.LinuxContainerAdjustment, here: Circumstances
) -> cri.LinuxContainerResources:
    if not asked.HasField("oom_score_adj"):
        return here.resources
    found = amounts.with_oom_score(here.resources, asked.oom_score_adj.value)
    process["oomScoreAdj"] = max(here.host.lowest_oom_score_adj, found.oom_score_adj)
    return found


def _scheduling(process: dict[str, Any], asked: nri.LinuxContainerAdjustment) -> None:
    """I/O priority and scheduler; class and policy NONE take away what the node's base specification sets."""
    if asked.HasField("io_priority"):
        process.pop("ioPriority", None)
        kind, priority = getattr(asked.io_priority, "class"), asked.io_priority.priority
        if kind:
            if priority not in IO_PRIORITIES:
                raise invalid(f"I/O priority {priority} is not between 0 and 7")
            process["ioPriority"] = {"class": _name(nri.IOPrioClass, kind), "priority": priority}
    if asked.HasField("scheduler"):
        process.pop("scheduler", None)
        if asked.scheduler.policy:
            process["scheduler"] = _scheduler(asked.scheduler)


def _scheduler(asked: nri.LinuxScheduler) -> dict[str, Any]:
    policy = _name(nri.LinuxSchedulerPolicy, asked.policy)
    if asked.policy == nri.SCHED_ISO:
        raise invalid("Linux has no scheduling policy SCHED_ISO")
    if asked.nice not in NICE:
        raise invalid(f"nice {asked.nice} is not between -20 and 19")
    if (asked.policy in REALTIME) != (asked.priority in PRIORITIES) or (asked.priority and asked.priority not in PRIORITIES):
        raise invalid(
            f"scheduling priority {asked.priority} does not go with {policy}: 1 to 99 with SCHED_FIFO and SCHED_RR, else 0"
        )
    times = (asked.runtime, asked.deadline, asked.period)
    if asked.policy == nri.SCHED_DEADLINE and not 0 < asked.runtime <= asked.deadline <= (asked.period or asked.deadline):
        raise invalid(f"runtime, deadline and period {times} ns do not go with SCHED_DEADLINE: each is at most the next")
    found: dict[str, Any] = {"policy": policy}
    for name in ("nice", "priority", "runtime", "deadline", "period"):
        if value := getattr(asked, name):
            found[name] = value
    if asked.flags:
        found["flags"] = [_name(nri.LinuxSchedulerFlag, flag) for flag in asked.flags]
    return found


def _name(enum: Any, number: int) -> str:
    if number not in enum.values():
        raise invalid(f"{number} is no {enum.DESCRIPTOR.name} that this version knows")
    return str(enum.Name(number))


def _linux(spec: dict[str, Any], asked: nri.LinuxContainerAdjustment, here: Circumstances) -> None:
    """Seccomp policy, namespaces, sysctls."""
    linux = spec["linux"]
    if asked.HasField("seccomp_policy"):
        rules = _seccomp(spec, asked.seccomp_policy)
        if here.host.has_seccomp:
            linux["seccomp"] = rules
        else:
            withheld("seccomp policies of NRI plugins: the kernel has no seccomp")
    for namespace in asked.namespaces:
        gone = removed(namespace.type)
        kind = namespace.type if gone is None else gone
        if kind not in NAMESPACES:
            raise invalid(f"namespace {kind!r} is none of {', '.join(sorted(NAMESPACES))}, which plugins may change")
        kept = [other for other in linux["namespaces"] if other["type"] != kind]
        if gone is None:
            if namespace.path and not namespace.path.startswith("/"):
                raise invalid(f"namespace {kind}: path {namespace.path!r} is not absolute")
            kept.append({"type": kind, "path": namespace.path} if namespace.path else {"type": kind})
        linux["namespaces"] = kept
    if asked.sysctl:
        for key in asked.sysctl:
            if not SYSCTL.fullmatch(removed(key) or key):
                raise invalid(f"{key!r} is no name of a sysctl")
        _lay(linux.setdefault("sysctl", {}), asked.sysctl, "sysctl")


def _seccomp(spec: dict[str, Any], asked: nri.LinuxSeccomp) -> dict[str, Any]:
    document: dict[str, Any] = {
        "defaultAction": asked.default_action,
        "architectures": list(asked.architectures),
        "flags": list(asked.flags),
        "listenerPath": asked.listener_path,
        "listenerMetadata": asked.listener_metadata,
        "syscalls": [_syscall(rule) for rule in asked.syscalls],
    }
    if asked.HasField("default_errno"):
        document["defaultErrnoRet"] = asked.default_errno.value
    granted = frozenset(spec["process"].get("capabilities", {}).get("bounding", ()))
    return seccomp_json.profile(document, "the seccomp policy", granted)


def _syscall(rule: nri.LinuxSyscall) -> dict[str, Any]:
    arguments = [
        {"index": argument.index, "value": argument.value, "valueTwo": argument.value_two, "op": argument.op}
        for argument in rule.args
    ]
    found: dict[str, Any] = {"names": list(rule.names), "action": rule.action, "args": arguments}
    if rule.HasField("errno_ret"):
        found["errnoRet"] = rule.errno_ret.value
    return found


def _runtime_parts(linux: dict[str, Any], asked: nri.LinuxContainerAdjustment, here: Circumstances) -> None:
    """What only OCI runtimes of late can do: those that cannot would pass it over without a word."""
    if asked.net_devices:
        _needs(here, "netDevices", "network devices")
        devices = linux.setdefault("netDevices", {})
        for marked, device in sorted(asked.net_devices.items()):
            name = removed(marked)
            if name is not None:
                devices.pop(name, None)
                continue
            for one in (marked, device.name):
                if (one or one is marked) and (not DEVICE.fullmatch(one) or one in (".", "..")):
                    raise invalid(f"{one!r} is no name of a network device")
            devices[marked] = {"name": device.name} if device.name else {}
    if asked.HasField("memory_policy"):
        policy = asked.memory_policy
        _needs(here, "memoryPolicy", "memory policies")
        linux["memoryPolicy"] = {
            "mode": _name(nri.MpolMode, policy.mode),
            "nodes": policy.nodes,
            "flags": [_name(nri.MpolFlag, flag) for flag in policy.flags],
        }


def _needs(here: Circumstances, field: str, what: str) -> None:
    if field not in here.features.fields:
        raise invalid(f"the OCI runtime {here.handler} {here.features.version} knows no {what} (linux.{field})")


def _rdt(linux: dict[str, Any], asked: nri.LinuxContainerAdjustment, here: Circumstances) -> None:
    if asked.resources.HasField("rdt_class"):
        linux.pop("intelRdt", None)
        if name := asked.resources.rdt_class.value:
            linux["intelRdt"] = classes.rdt(name)
    if not asked.HasField("rdt"):
        return
    rdt = asked.rdt
    if rdt.remove:
        linux.pop("intelRdt", None)
    if not any(rdt.HasField(name) for name in ("clos_id", "schemata", "enable_monitoring")):
        return
    classes.require_resctrl()
    found = linux.setdefault("intelRdt", {})
    if rdt.HasField("clos_id"):
        if not classes.RDT_NAME.fullmatch(rdt.clos_id.value):
            raise invalid(f"{rdt.clos_id.value!r} is no name of an RDT class")
        found["closID"] = rdt.clos_id.value
    if rdt.HasField("schemata"):
        _needs(here, "intelRdt.schemata", "RDT schemata")
        found["schemata"] = list(rdt.schemata.value)
    if rdt.HasField("enable_monitoring"):
        _needs(here, "intelRdt.enableMonitoring", "RDT monitoring")
        found["enableMonitoring"] = rdt.enable_monitoring.value
