"""What the kubelet's built-in cAdvisor asks: whose the cgroups are that it finds.

cAdvisor reads cgroups and /proc by itself, and asks containerd for the labels of a group whose name has 64 hexadecimal
digits, and for a process of it. With these the kubelet's Summary API and /metrics/cadvisor have pods, containers and their
network without any feature gate. So the daemon answers the calls in containerd's place, if that is free:

    containerd.services.version.v1.Version/Version          once, when the kubelet starts
    containerd.services.containers.v1.Containers/Get        for each group that appears: labels and image
    containerd.services.tasks.v1.Tasks/Get                  its process; again when it has ended: its exit code

Everything else there is UNIMPLEMENTED. Answers come from memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog

from kernel import sockets
from proto import cadvisor_pb2 as wire
from proto.version import VERSION
from runtime.lifecycle import ContainerState
from runtime.pods import sandbox_group

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container, Sandbox

KIND: Final = "io.cri-containerd.kind"
"""Label by which cAdvisor knows sandboxes, and takes network figures of nothing else."""

SPECIFICATION: Final = wire.Any(
    type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b'{"process":{"env":[]}}'
)
"""cAdvisor reads environment variables of it, which are no concern of its."""

LOOK_SECONDS: Final = 5.0
RENEWED_AT: Final = frozenset((2, 4, 8, 20))
"""At these looks at a sandbox that nobody asks for its cgroup appears anew."""

log = structlog.get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class Cadvisor:
    """Serves on a socket that root alone may use."""

    def __init__(self, node: Node, path: str) -> None:
        self._node = node
        self._path = Path(path)
        self._made_directory = False
        self._inode = 0
        self._server: grpc.aio.Server | None = None
        self._following: asyncio.Task[None] | None = None
        self._asked: set[str] = set()
        """Sandboxes whose process cAdvisor knows."""

    async def start(self) -> None:
        """Listen, unless another program does: its containers are not ours, and cAdvisor can ask one alone."""
        try:
            sockets.make_room(str(self._path))
            self._made_directory = not self._path.parent.exists()
            self._path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            await self._listen()
        except (RuntimeError, OSError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            log.warning("cAdvisor cannot ask for pods", socket=str(self._path), error=reason)
            return
        if self._node.looked_at:
            self._following = asyncio.create_task(self._follow())

    async def _listen(self) -> None:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        server.add_generic_rpc_handlers(self._handlers())
        # gRPC unlinks the name that it has bound when it stops, whosever it is by then.
        bound = f"{self._path}.crisp"
        with sockets.bound_for_owner():
            server.add_insecure_port(f"unix:{bound}")
        self._server = server
        await server.start()
        self._inode = os.lstat(bound).st_ino
        try:
            os.link(bound, self._path)  # and not rename(2), which would take the place of a program that came just now
        finally:
            os.unlink(bound)

    async def _begin(self) -> None:
        await sandbox_group.note(self._node)
        await self._follow()

    async def _follow(self) -> None:
        """Make the cgroups of all sandboxes appear anew, and later once more those whose process nobody has asked for.

        cAdvisor asks once for a group that appears, and takes it for a mere cgroup if it has no connection just then, or no
        answer in two seconds. After a restart of the daemon it waits some seconds between its attempts to connect.
        """
        looks: dict[str, int] = {}
        for sandbox in list(self._node.sandboxes.values()):
            await sandbox_group.renew(self._node, sandbox)
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._asked &= set(self._node.sandboxes)
            waiting = set(self._node.sandboxes) - self._asked
            looks = {sandbox_id: looks.get(sandbox_id, 0) + 1 for sandbox_id in waiting}
            for sandbox_id, number in looks.items():
                if number in RENEWED_AT and sandbox_id in self._node.sandboxes:
                    await sandbox_group.renew(self._node, self._node.sandboxes[sandbox_id])

    async def stop(self) -> None:
        """Take no more calls, and leave the place as it was; containerd may have taken it meanwhile."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._server is not None:
            with suppress(OSError):
                if os.lstat(self._path).st_ino == self._inode:
                    self._path.unlink()
            await self._server.stop(grace=0)
        if self._made_directory:
            with suppress(OSError):
                self._path.parent.rmdir()

    def _handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        def service(name: str, method: str, handle: Callable[[Any, Context], Awaitable[Any]], request: Any) -> Any:
            handler = grpc.unary_unary_rpc_method_handler(handle, request.FromString, _serialize)
            return grpc.method_handlers_generic_handler(f"containerd.services.{name}", {method: handler})

        return (
            service("version.v1.Version", "Version", self._version, wire.Empty),
            service("containers.v1.Containers", "Get", self._get_container, wire.GetContainerRequest),
            service("tasks.v1.Tasks", "Get", self._get_task, wire.GetTaskRequest),
        )

    async def _version(self, _request: wire.Empty, _context: Context) -> wire.VersionResponse:
        if not self._node.looked_at:
            log.info("cAdvisor asks for containers: pods have cgroups for it from now on")
            self._node.looked_at = True
            # Not waited for: a disk that does not answer would hold up the start of the kubelet.
            self._following = asyncio.create_task(self._begin())
        return wire.VersionResponse(version=f"crisp-{VERSION}")

    async def _get_container(self, request: wire.GetContainerRequest, context: Context) -> wire.GetContainerResponse:
        if (container := self._node.containers.get(request.id)) is not None:
            found = _container(container)
        elif (sandbox := self._node.sandboxes.get(request.id)) is not None:
            found = _sandbox(sandbox)
        else:
            found = None
            await _missing(context, request.id)
        return wire.GetContainerResponse(container=found)

    async def _get_task(self, request: wire.GetTaskRequest, context: Context) -> wire.GetTaskResponse:
        if (container := self._node.containers.get(request.container_id)) is not None:
            record = container.record
            status = _STATUS.get(record.state, wire.UNKNOWN)
            found = wire.Process(id=record.id, pid=record.pid, status=status, exit_status=record.exit_code)
        elif (sandbox := self._node.sandboxes.get(request.container_id)) is not None:
            pid = await sandbox_group.process(self._node, sandbox)
            if pid:
                self._asked.add(sandbox.record.id)
            status = wire.RUNNING if pid else wire.STOPPED if sandbox.record.stopped_at else wire.UNKNOWN
            found = wire.Process(id=sandbox.record.id, pid=pid, status=status)
        else:
            found = wire.Process()
        if not found.pid and found.status != wire.STOPPED:
            # It is being made, perhaps: cAdvisor asks again, for some seconds.
            await _missing(context, request.container_id)
        return wire.GetTaskResponse(process=found)


_STATUS: Final = {
    ContainerState.CREATED: wire.CREATED,
    ContainerState.RUNNING: wire.RUNNING,
    ContainerState.EXITED: wire.STOPPED,
}


def _container(container: Container) -> wire.Container:
    record = container.record
    return wire.Container(
        id=record.id,
        labels={**record.config.labels, KIND: "container"},
        image=record.image_name or record.config.image.user_specified_image or record.config.image.image,
        spec=SPECIFICATION,
    )


def _sandbox(sandbox: Sandbox) -> wire.Container:
    record = sandbox.record
    return wire.Container(id=record.id, labels={**record.config.labels, KIND: "sandbox"}, spec=SPECIFICATION)


async def _missing(context: Context, name: str) -> None:
    await context.abort(grpc.StatusCode.NOT_FOUND, f"no container or task {name}")


def _serialize(reply: Any) -> bytes:
    data: bytes = reply.SerializeToString()
    return data
