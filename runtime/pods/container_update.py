"""UpdateContainerResources and UpdatePodSandboxResources: resizing in place.

What a request leaves out keeps its value, so the new resources are the recorded ones with the request laid over them. They
are recorded once the kernel has taken them all. An OCI runtime writes one control file after another and stops at the
first that is refused: then the old values are written again, so that a refused update leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final

import structlog

from kernel import cgroups
from kernel.cgroup_stats import read, read_usage
from kernel.failpoints import failpoint
from proto import api_pb2 as cri
from proto.errors import CrispError, failed_precondition
from runtime.lifecycle import ContainerState, SandboxState
from runtime.oci import resources, systemd_limits
from runtime.pods import container_adjust, plugin_hooks, scope_limits

if TYPE_CHECKING:
    from runtime.host.host import Host
    from runtime.pods.node import Node
    from runtime.pods.objects import Container

UPDATABLE: Final = frozenset((ContainerState.CREATED, ContainerState.RUNNING))

UNSET: Final = {
    "cpu_period": 100_000,
    "cpu_quota": -1,
    "cpu_shares": 1024,
    "memory_limit_in_bytes": -1,
    "memory_swap_limit_in_bytes": -1,
}
"""What the kernel has where nothing was asked for."""

log = structlog.get_logger(__name__)


async def update(node: Node, request: cri.UpdateContainerResourcesRequest) -> None:
    """Change a container's resources, or leave them as they are and say why.

    FAILED_PRECONDITION if the container has ended, or uses more memory than it would be allowed.
    """
    container = node.container(request.container_id)
    async with container.lock:
        _check_state(container)
        asked, beyond = request.linux, dict[str, Any]()
        wanted = await plugin_hooks.update(node, container, request.linux)
        if wanted is not None:
            asked, beyond = await container_adjust.changes(node, wanted.resources, request.linux)
        await resize(node, container, asked, beyond)
        await plugin_hooks.updated(node, container)


def _check_state(container: Container) -> None:
    record = container.record
    if record.state not in UPDATABLE or container.shim is None:
        raise failed_precondition(f"container {record.id} is {record.state.value}: its resources cannot be updated")
    if record.restored_from and record.state is ContainerState.CREATED:
        raise failed_precondition(f"container {record.id} has no process yet: it is resized once it is restored")


async def resize(
    node: Node, container: Container, asked: cri.LinuxContainerResources, beyond: dict[str, Any] | None = None
) -> None:
    """Change a container's resources, whoever wants it; raises as `update`.

    `beyond` are resources of the OCI runtime specification that CRI has no fields for; they are not remembered.
    """
    async with container.resizing:
        _check_state(container)
        record = container.record
        merged = merge(record.resources, asked)
        changed = _joined(resources.build(merged, node.host), beyond or {})
        await _check_memory(node, container, asked.memory_limit_in_bytes)
        try:
            await _apply(node, container, changed, merged.cpu_quota)
        except CrispError as error:
            await _restore(node, container, merged)
            raise failed_precondition(f"container {record.id}: its resources stay as they were: {error.message}") from error
        await asyncio.get_running_loop().run_in_executor(node.blocking, _set_oom_score, node, container, merged)
        record.resources = merged
        container.view = None
        failpoint("container.updated")
        await node.store.containers.put(record.id, record.document())


def _joined(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Two `resources` objects that do not say the same thing."""
    joined = dict(ours)
    for key, value in theirs.items():
        joined[key] = {**joined.get(key, {}), **value} if isinstance(value, dict) else value
    return joined


async def update_sandbox(node: Node, request: cri.UpdatePodSandboxResourcesRequest) -> None:
    """Take note of a pod's resources. The pod's cgroup is the kubelet's, which has resized it."""
    sandbox = node.sandbox(request.pod_sandbox_id)
    async with sandbox.lock:
        record = sandbox.record
        if record.state is not SandboxState.READY:
            raise failed_precondition(f"sandbox {record.id} is {record.state.value}, not ready")
        await plugin_hooks.update_sandbox(node, sandbox, request.overhead, request.resources)
        record.overhead = merge(record.overhead, request.overhead)
        record.resources = merge(record.resources, request.resources)
        await node.store.sandboxes.put(record.id, record.document())
        await plugin_hooks.sandbox_updated(node, sandbox)


def merge(old: cri.LinuxContainerResources, asked: cri.LinuxContainerResources) -> cri.LinuxContainerResources:
    """`old` with what `asked` sets laid over it; `unified` goes key by key, huge pages size by size."""
    merged = cri.LinuxContainerResources()
    merged.CopyFrom(old)
    without_swap = old.memory_swap_limit_in_bytes == old.memory_limit_in_bytes
    if asked.memory_limit_in_bytes and not asked.memory_swap_limit_in_bytes and without_swap:
        # The swap limit counts memory and swap together: who may use no swap now may use none afterwards.
        merged.memory_swap_limit_in_bytes = asked.memory_limit_in_bytes if old.memory_swap_limit_in_bytes else 0
    sizes = {page.page_size for page in asked.hugepage_limits}
    kept = [page for page in old.hugepage_limits if page.page_size not in sizes]
    del merged.hugepage_limits[:]
    merged.hugepage_limits.extend(kept)
    merged.MergeFrom(asked)  # sets what is set, appends to lists, lays maps over maps
    return merged


async def _check_memory(node: Node, container: Container, limit: int) -> None:
    """v2 takes any limit and kills until it is met; v1 refuses by itself. The kubelet wants a refusal."""
    if limit <= 0:
        return
    group = node.host.hierarchies.group(container.record.cgroup)
    usage = await asyncio.get_running_loop().run_in_executor(node.blocking, read_usage, group)
    if usage.memory is not None and usage.memory.working_set > limit:
        raise failed_precondition(
            f"container {container.record.id} uses {usage.memory.working_set} bytes of memory, "
            f"more than the limit of {limit} bytes that was asked for"
        )


async def _apply(node: Node, container: Container, changed: dict[str, Any], cpu_quota: int) -> None:
    """Have the OCI runtime write the limits."""
    assert container.shim is not None
    if cpu_quota < 0 and not node.host.cgroup_v2:
        group = node.host.hierarchies.group(container.record.cgroup)
        cgroups.write(os.path.join(group.directory("cpu"), "cpu.cfs_quota_us"), "-1")
    if changed:
        await container.shim.update(changed)
        await scope_limits.tell(node.host, node.blocking, container.record.cgroup, systemd_limits.assignments(changed))
        await scope_limits.write_again(node.host, node.blocking, container.record.cgroup, changed.get("unified", {}))


async def _restore(node: Node, container: Container, refused: cri.LinuxContainerResources) -> None:
    """Write the recorded values again, and the kernel's own where nothing was recorded."""
    old = cri.LinuxContainerResources()
    old.CopyFrom(container.record.resources)
    for name, default in UNSET.items():
        if getattr(refused, name) and not getattr(old, name):
            setattr(old, name, default)
    for name in ("cpuset_cpus", "cpuset_mems"):
        if getattr(refused, name) and not getattr(old, name):
            setattr(old, name, _inherited(node.host, container.record.cgroup, name))
    if container.shim is None:
        return
    try:
        await _apply(node, container, resources.build(old, node.host), old.cpu_quota)
    except CrispError as error:
        log.warning("cannot restore resources", container=container.record.id, error=error.message)


def _inherited(host: Host, cgroup: str, name: str) -> str:
    """What the group above allows: a cpuset of its own is never empty on v1."""
    parent = host.hierarchies.group(os.path.dirname(cgroup)).directory("cpuset")
    file = name.replace("_", ".") + (".effective" if host.cgroup_v2 else "")
    return read(os.path.join(parent, file)).decode().strip()


def _set_oom_score(node: Node, container: Container, merged: cri.LinuxContainerResources) -> None:
    """Give the new score to those processes that still have the old one. Blocks."""
    record, lowest = container.record, node.host.lowest_oom_score_adj
    before, after = (max(lowest, r.oom_score_adj) for r in (record.resources, merged))
    if before == after:
        return
    for pid in node.host.hierarchies.group(record.cgroup).procs():
        path = f"/proc/{pid}/oom_score_adj"
        if read(path).strip() != str(before).encode():
            continue
        try:
            cgroups.write(path, str(after))
        except OSError as error:
            log.debug("oom_score_adj not changed", pid=pid, error=error.strerror)
