"""What plugins ask of a container's resources, as CRI's and as OCI's: of new containers and of those that run.

CRI has most of it; that much is laid over what the kubelet has asked for, and so ContainerStatus, later updates and what
systemd is told all follow. The rest goes to the OCI runtime alone. What the host cannot do is withheld, and said once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from proto import api_pb2 as cri
from proto.errors import CrispError, invalid
from runtime.nri.errors import Refused
from runtime.oci import classes, resources
from runtime.oci.resources import withheld

if TYPE_CHECKING:
    from proto import nri_pb2 as nri
    from runtime.host.host import Host

MAX: Final = (1 << 63) - 1
"""What CRI's signed numbers hold."""

_CPU: Final = {"shares": "cpu_shares", "quota": "cpu_quota", "period": "cpu_period"}
_SETS: Final = {"cpus": "cpuset_cpus", "mems": "cpuset_mems"}
_OCI: Final = {
    "cpu_shares": ("cpu", "shares"),
    "cpu_quota": ("cpu", "quota"),
    "cpu_period": ("cpu", "period"),
    "cpuset_cpus": ("cpu", "cpus"),
    "cpuset_mems": ("cpu", "mems"),
    "memory_limit_in_bytes": ("memory", "limit"),
    "memory_swap_limit_in_bytes": ("memory", "swap"),
}
_V1_MEMORY: Final = {
    "kernel": "kernel",
    "kernel_tcp": "kernelTCP",
    "swappiness": "swappiness",
    "disable_oom_killer": "disableOOMKiller",
    "use_hierarchy": "useHierarchy",
}
_V1_CPU: Final = {"realtime_runtime": "realtimeRuntime", "realtime_period": "realtimePeriod"}

DEVICE_KINDS: Final = ("", "a", "b", "c")


def laid_over(old: cri.LinuxContainerResources, asked: nri.LinuxResources) -> cri.LinuxContainerResources:
    """`old` with what plugins ask for. INVALID_ARGUMENT for what no kernel takes.

    A limit of memory without one of swap means no swap, but for what `unified` says: plugins are used to that.
    """
    new = cri.LinuxContainerResources()
    new.CopyFrom(old)
    for name, field in _CPU.items():
        if asked.cpu.HasField(name):
            setattr(new, field, _signed(getattr(asked.cpu, name).value, name))
    for name, field in _SETS.items():
        if text := getattr(asked.cpu, name):
            setattr(new, field, text)
    if asked.memory.limit.value:
        new.memory_limit_in_bytes, new.memory_swap_limit_in_bytes = asked.memory.limit.value, 0
    if asked.memory.HasField("swap"):
        new.memory_swap_limit_in_bytes = asked.memory.swap.value
    sizes = {page.page_size: page.limit for page in old.hugepage_limits}
    sizes |= {page.page_size: page.limit for page in asked.hugepage_limits}
    del new.hugepage_limits[:]
    new.hugepage_limits.extend(cri.HugepageLimit(page_size=size, limit=limit) for size, limit in sizes.items())
    new.unified.update(asked.unified)
    resources.check(new)
    return new


def with_oom_score(old: cri.LinuxContainerResources, score: int) -> cri.LinuxContainerResources:
    """`old` with another oom_score_adj. INVALID_ARGUMENT for what no kernel takes."""
    if not -1000 <= score <= 1000:
        raise invalid(f"oom_score_adj {score} is not between -1000 and 1000")
    new = cri.LinuxContainerResources()
    new.CopyFrom(old)
    new.oom_score_adj = score
    return new


def changes(
    base: cri.LinuxContainerResources, asked: nri.LinuxResources, host: Host, path: str
) -> tuple[cri.LinuxContainerResources, dict[str, Any]]:
    """An update of a container that is there: as CRI has it, `base` with what plugins ask for, and the rest as OCI has it.

    `path`: the node's classes of block I/O. Blocks. Raises `Refused`; INVALID_ARGUMENT for `base`.
    """
    if asked.HasField("rdt_class"):
        withheld("RDT classes that NRI plugins change later on: a process stays in the class that it was started in")
    if asked.devices:
        withheld("device rules that NRI plugins change later on: a container keeps those that it was created with")
    resources.check(base)  # what is wrong there is the kubelet's
    try:
        return laid_over(base, asked), further(asked, host, path)
    except CrispError as error:
        raise Refused(f"what NRI plugins ask for cannot be given: {error.message}") from error


def further(asked: nri.LinuxResources, host: Host, blockio_config_file: str = "") -> dict[str, Any]:
    """What CRI has no fields for, as OCI's `resources`, without device rules. Blocks where there is a class of block I/O."""
    found: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    if asked.memory.HasField("reservation"):
        memory["reservation"] = asked.memory.reservation.value
    memory |= _of_v1("memory", asked.memory, _V1_MEMORY, host)
    if memory:
        found["memory"] = memory
    if cpu := _of_v1("cpu", asked.cpu, _V1_CPU, host):
        found["cpu"] = cpu
    if asked.HasField("pids"):
        found["pids"] = {"limit": asked.pids.limit if asked.pids.limit > 0 else -1}
    if asked.blockio_class.value:
        found["blockIO"] = classes.block_io(asked.blockio_class.value, blockio_config_file)
    return found


def rules(asked: nri.LinuxResources) -> list[dict[str, Any]]:
    """Device rules."""
    found = []
    for rule in asked.devices:
        if rule.type not in DEVICE_KINDS or not rule.access or not set(rule.access) <= set("rwm"):
            raise invalid(
                f"device rule {rule.type!r} {rule.access!r}: its type must be a, b or c, its access some of r, w, m"
            )
        one: dict[str, Any] = {"allow": rule.allow, "access": rule.access}
        if rule.type:
            one["type"] = rule.type
        for name in ("major", "minor"):
            if rule.HasField(name):
                one[name] = getattr(rule, name).value
        found.append(one)
    return found


def apply(linux: dict[str, Any], old: cri.LinuxContainerResources, asked: nri.LinuxResources, host: Host, path: str) -> None:
    """Change OCI's `linux` of a new container. `old`: what the kubelet asks for, with the plugins' oom_score_adj.

    `path`: the node's classes of block I/O. Blocks.
    """
    new = laid_over(old, asked)
    limits = linux.setdefault("resources", {})
    built = resources.build(new, host)
    for field, (part, key) in _OCI.items():
        if getattr(new, field) != getattr(old, field) or (part == "memory" and asked.memory.limit.value):
            limits.get(part, {}).pop(key, None)
            if key in built.get(part, {}):
                limits.setdefault(part, {})[key] = built[part][key]
    if asked.hugepage_limits and "hugepageLimits" in built:
        limits["hugepageLimits"] = built["hugepageLimits"]
    if asked.unified and "unified" in built:
        limits["unified"] = limits.get("unified", {}) | built["unified"]
        if "memory.swap.max" in asked.unified and not new.memory_swap_limit_in_bytes:
            limits.get("memory", {}).pop("swap", None)
    for part, values in further(asked, host, path).items():
        limits[part] = limits.get(part, {}) | values if part in ("memory", "cpu") else values
    if asked.HasField("blockio_class") and not asked.blockio_class.value:
        limits.pop("blockIO", None)
    limits["devices"] = limits.get("devices", []) + rules(asked)


def _of_v1(part: str, asked: Any, names: dict[str, str], host: Host) -> dict[str, Any]:
    """What only cgroup v1 has."""
    found = {key: getattr(asked, name).value for name, key in names.items() if asked.HasField(name)}
    if found and host.cgroup_v2:
        withheld(f"NRI plugins' {', '.join(f'{part}.{name}' for name in names if asked.HasField(name))}: cgroup v2 has none")
        return {}
    return found


def _signed(number: int, name: str) -> int:
    if number > MAX:
        raise invalid(f"cpu.{name} {number} is more than {MAX}")
    return number
