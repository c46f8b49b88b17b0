"""Where the verbs tell NRI plugins of pods and containers, and take what plugins want of them.

    RunPodSandbox     before the pod is ready            a refusal undoes it
    StopPodSandbox    after its containers' end, before its network goes
    RemovePodSandbox  before its directories go
    CreateContainer   its OCI configuration is complete  a refusal undoes it; then PostCreateContainer
    StartContainer    before its process runs            a refusal leaves it created; then PostStartContainer
    UpdateContainer   before the kernel is told          a refusal leaves all as it was; then PostUpdateContainer
    StopContainer     after its end, whoever ended it
    RemoveContainer   before its directories go

Each stop and each removal is told once. What a plugin says to them changes nothing any more, so it is logged. `known` is set
when the telling of an object begins, in one step with the look at who is there: a plugin that joins later is told of it by
Synchronize (runtime/nri/plugins.py). Without plugins every function returns at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from proto import nri_pb2 as nri
from proto.errors import CrispError
from runtime.nri import dispatch, messages
from runtime.oci import document

if TYPE_CHECKING:
    from runtime.nri.merge import CreateResult, UpdateResult
    from runtime.pods.node import Node
    from runtime.pods.objects import Container, Sandbox

T = TypeVar("T")

log = structlog.get_logger(__name__)


# ---- as plugins see them ----


def pod_view(node: Node, sandbox: Sandbox) -> nri.PodSandbox:
    """The pod as it is now. Whoever gets it leaves it as it is: the next one gets the same, until something has changed."""
    record = sandbox.record
    # What a pod's message is made of beside what never changes; the resources are replaced, not changed.
    now = (sandbox.stop_told, record.pause_pid, record.cgroup, [*record.ips], record.overhead, record.resources)
    if sandbox.view is None or sandbox.view[0] != now:
        sandbox.view = now, messages.pod_message(record, node.paths, stopped=sandbox.stop_told)
    return sandbox.view[1]


def container_view(node: Node, container: Container) -> nri.Container:
    """The container as it is now."""
    record = container.record
    if container.view is None:
        message = messages.container_message(
            record, container.spec if container.spec is not None else _spec(node, container)
        )
        container.view = message.SerializeToString()
        return message
    message = nri.Container.FromString(container.view)
    message.state = messages.STATES[record.state]
    message.pid = 0 if record.finished_at else record.pid
    message.started_at, message.finished_at, message.exit_code = record.started_at, record.finished_at, record.exit_code
    message.status_reason, message.status_message = record.reason, record.message
    return message


def _spec(node: Node, container: Container) -> dict[str, Any]:
    """What the OCI runtime was given; empty if the bundle went with a reboot."""
    try:
        return document.shown((node.paths.bundle(container.record.id) / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}


# ---- sandboxes ----


async def run_sandbox(node: Node, sandbox: Sandbox) -> None:
    """Raises CrispError if a plugin refuses."""
    sandbox.known = True
    if node.plugins:
        await dispatch.tell(node.plugins, nri.RUN_POD_SANDBOX, nri.RunPodSandboxRequest(pod=pod_view(node, sandbox)))


async def sandbox_failed(node: Node, sandbox: Sandbox) -> None:
    """A sandbox that did not become ready is to be forgotten. Raises nothing."""
    await sandbox_stopped(node, sandbox)
    await sandbox_removed(node, sandbox)


async def sandbox_stopped(node: Node, sandbox: Sandbox) -> None:
    """Once. Raises nothing."""
    if not sandbox.known or sandbox.stop_told:
        return
    pod = pod_view(node, sandbox) if node.plugins else None  # with its namespaces: devices are taken back out of them
    sandbox.stop_told = True
    if pod is not None:
        request = nri.StopPodSandboxRequest(pod=pod)
        await _said(node, dispatch.tell(node.plugins, nri.STOP_POD_SANDBOX, request), sandbox=sandbox.record.id)


async def sandbox_removed(node: Node, sandbox: Sandbox) -> None:
    """Once. Raises nothing."""
    if not sandbox.known:
        return
    sandbox.known = False
    if node.plugins:
        request = nri.RemovePodSandboxRequest(pod=pod_view(node, sandbox))
        await _said(node, dispatch.tell(node.plugins, nri.REMOVE_POD_SANDBOX, request), sandbox=sandbox.record.id)


async def update_sandbox(node: Node, sandbox: Sandbox, overhead: Any, resources: Any) -> None:
    """Raises CrispError if a plugin refuses."""
    if node.plugins:
        request = nri.UpdatePodSandboxRequest(
            pod=pod_view(node, sandbox),
            overhead_linux_resources=messages.linux_resources(overhead),
            linux_resources=messages.linux_resources(resources),
        )
        await dispatch.tell(node.plugins, nri.UPDATE_POD_SANDBOX, request)


async def sandbox_updated(node: Node, sandbox: Sandbox) -> None:
    """Raises nothing."""
    if node.plugins:
        request = nri.PostUpdatePodSandboxRequest(pod=pod_view(node, sandbox))
        await _said(node, dispatch.tell(node.plugins, nri.POST_UPDATE_POD_SANDBOX, request), sandbox=sandbox.record.id)


# ---- containers ----


async def create(node: Node, container: Container, spec: dict[str, Any]) -> CreateResult | None:
    """What plugins want of a container with this OCI configuration; others are changed already. None: nothing.

    Raises CrispError if a plugin refuses, plugins contradict each other, or a validator does not want it.
    """
    container.known, container.spec = True, spec
    if not node.plugins:
        return None
    view = container_view(node, container)
    async with container.telling:
        result = await dispatch.create(node.plugins, pod_view(node, container.sandbox), view)
    await node.plugins.carry_out(result.updates, result.evictions)
    return result


async def container_failed(node: Node, container: Container) -> None:
    """A container that was not made is to be forgotten. Raises nothing."""
    if container.known:
        container_stopped(node, container)
        await stop_answered(container)
        await container_removed(node, container)


async def created(node: Node, container: Container) -> None:
    """It is made. Raises nothing."""
    container.view = container.spec = None
    if node.plugins:
        request = nri.PostCreateContainerRequest(**_both(node, container))
        await _post(node, container, nri.POST_CREATE_CONTAINER, request)


async def start(node: Node, container: Container) -> None:
    """Raises CrispError if a plugin refuses. The caller holds `telling`."""
    if node.plugins:
        request = nri.StartContainerRequest(**_both(node, container))
        await dispatch.tell(node.plugins, nri.START_CONTAINER, request)


async def started(node: Node, container: Container) -> None:
    """Raises nothing. The caller holds `telling`."""
    if node.plugins:
        request = nri.PostStartContainerRequest(**_both(node, container))
        work = dispatch.tell(node.plugins, nri.POST_START_CONTAINER, request)
        await _said(node, work, container=container.record.id)


async def update(node: Node, container: Container, resources: Any) -> UpdateResult | None:
    """What plugins make of an update of a container's resources; others are changed already. None: nothing.

    Raises CrispError if a plugin refuses, or plugins contradict each other.
    """
    if not node.plugins:
        return None
    asked = messages.linux_resources(resources)
    async with container.telling:
        result = await dispatch.update(node.plugins, **_both(node, container), resources=asked)
    await node.plugins.carry_out(result.updates, result.evictions)
    return result


async def updated(node: Node, container: Container) -> None:
    """Raises nothing."""
    container.view = None
    if node.plugins:
        request = nri.PostUpdateContainerRequest(**_both(node, container))
        await _post(node, container, nri.POST_UPDATE_CONTAINER, request)


def container_stopped(node: Node, container: Container) -> None:
    """It has ended: plugins are told, once, while the caller goes on; `stop_answered` waits for them."""
    if not container.known or container.stop_told:
        return
    container.stop_told = True
    if node.plugins:
        container.stop_telling = node.plugins.background(_tell_stop(node, container))


async def _tell_stop(node: Node, container: Container) -> None:
    try:
        async with container.telling:
            result = await dispatch.stop(node.plugins, **_both(node, container))
        await node.plugins.carry_out(result.updates, result.evictions)
    except CrispError as error:
        log.warning("nri plugin is not content", container=container.record.id, error=error.message)


async def stop_answered(container: Container) -> None:
    """Wait until the plugins have answered that a container has ended. Raises nothing."""
    if container.stop_telling is not None:
        await asyncio.shield(container.stop_telling)


async def container_removed(node: Node, container: Container) -> None:
    """Once. Raises nothing."""
    if not container.known:
        return
    container.known = False
    if node.plugins:
        request = nri.RemoveContainerRequest(**_both(node, container))
        await _post(node, container, nri.REMOVE_CONTAINER, request)


def _both(node: Node, container: Container) -> dict[str, Any]:
    return {"pod": pod_view(node, container.sandbox), "container": container_view(node, container)}


async def _post(node: Node, container: Container, event: int, request: Any) -> None:
    async def work() -> None:
        async with container.telling:
            await dispatch.tell(node.plugins, event, request)

    await _said(node, work(), container=container.record.id)


async def _said(node: Node, work: Coroutine[Any, Any, None], **about: str) -> None:
    """Tell something that has happened: to its end, though the caller is cancelled, and whatever plugins say to it."""

    async def quietly() -> None:
        try:
            await work
        except CrispError as error:
            log.warning("nri plugin is not content", error=error.message, **about)

    await asyncio.shield(node.plugins.background(quietly()))
