"""The gRPC boundary: the one place where errors become statuses, and where each call is logged, once.

Handlers are found by name: a service object has a method per RPC that it implements, named as api.proto names it. An RPC
without a method answers UNIMPLEMENTED, which optional RPCs must (and nothing else may).

A call that changes a pod or container goes on when its client gives up (rule 2 of docs/architecture.md): the boundary runs
it as a task of its own and only waits for it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from kernel import sockets
from proto import api_pb2
from proto.errors import EXHAUSTED, Code, CrispError
from runtime import deadlines, limits
from runtime.listing import Encoded

log = structlog.get_logger(__name__)

UNWRITABLE: Final = frozenset((errno.EROFS, errno.EIO))
"""What system calls meet on a disk that is broken or that the kernel has made read-only; no bug either."""

STATUS: Final = {code: getattr(grpc.StatusCode, code.name) for code in Code}

QUIET: Final = frozenset(
    (
        "Version",
        "Status",
        "RuntimeConfig",
        "ImageStatus",
        "ImageFsInfo",
        "PodSandboxStatus",
        "ContainerStatus",
        "ExecSync",
        "UseBuildImage",
        "MountBuildImage",
        "UnmountBuildImage",
    )
)
"""Calls that clients repeat all day: logged at debug level, as all List and Stats calls are."""

CANCELLABLE: Final = frozenset(("PullImage",))
"""Calls that end when their last client gives up: nobody would use the result."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as observers see it when it has ended."""

    service: str
    method: str
    streaming: bool
    metadata: Sequence[tuple[str, str | bytes]]
    """What the client sent beside the request."""
    begin: float = field(default_factory=time.monotonic)
    ids: dict[str, str] = field(default_factory=dict)
    """The ids and names that the call is about, as in the log."""

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begin


Observer = Callable[[Call, str], None]
"""Called after each call, with the name of its code."""


@dataclass(frozen=True, slots=True)
class _Failure:
    code: Code
    message: str


class Boundary:
    """Serves service objects over gRPC."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = observers
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_send_message_length", limits.GRPC_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", limits.GRPC_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
            )
        )

    def add(self, descriptor: ServiceDescriptor, service: object) -> None:
        """Serve `service` as the service that `descriptor` declares."""
        handlers = {method.name: self._handler(method, service) for method in descriptor.methods}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(descriptor.full_name, handlers),))

    def _handler(self, method: MethodDescriptor, service: object) -> grpc.RpcMethodHandler[Any, Any]:
        request = message_factory.GetMessageClass(method.input_type)
        implementation = getattr(service, method.name, None)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streaming(method, implementation), request.FromString, _serialize
            )
        return grpc.unary_unary_rpc_method_handler(self._unary(method, implementation), request.FromString, _serialize)

    def _unary(self, method: MethodDescriptor, implementation: Any) -> Any:
        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            deadlines.begin(context.time_remaining())
            work = self._run(_call(method, context), implementation, request)
            if method.name in CANCELLABLE or method.name.startswith("List"):
                outcome = await work
            else:
                outcome = await asyncio.shield(self._keep(work))
            if isinstance(outcome, _Failure):
                await context.abort(STATUS[outcome.code], outcome.message)
            return outcome

        return handle

    async def _run(self, call: Call, implementation: Any, request: Any) -> Any:
        """Call, and log the call: the reply, or a _Failure. Whether the client still waits makes no difference."""
        try:
            if implementation is None:
                raise CrispError(Code.UNIMPLEMENTED, f"crisp does not implement {call.method}")
            reply = await implementation(request)
        except Exception as error:  # the boundary turns every failure into a status
            return self._failed(call, request, error)
        self._succeeded(call, request, reply)
        return reply

    def _streaming(self, method: MethodDescriptor, implementation: Any) -> Any:
        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            call = _call(method, context)
            try:
                if implementation is None:
                    raise CrispError(Code.UNIMPLEMENTED, f"crisp does not implement {method.name}")
                async for reply in implementation(request):
                    yield reply
            except Exception as error:
                failure = self._failed(call, request, error)
                await context.abort(STATUS[failure.code], failure.message)
            self._succeeded(call, request, None)

        return handle

    def _keep(self, work: Any) -> asyncio.Task[Any]:
        """Run a call as a task that outlives its client."""
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _succeeded(self, call: Call, request: Any, reply: Any) -> None:
        name = call.method
        call.ids.update(_ids(request) | _ids(reply))
        self._told(call, "OK")
        quiet = name in QUIET or name.startswith(("List", "Stream")) or "Stats" in name
        write = log.debug if quiet else log.info
        write(name, **call.ids, ms=round(call.seconds * 1000, 1))

    def _failed(self, call: Call, request: Any, error: Exception) -> _Failure:
        call.ids.update(_ids(request))
        known = _of_host(error) if isinstance(error, OSError) else error
        if isinstance(known, CrispError):
            code, message = known.code, known.message
            write = log.debug if code in (Code.UNIMPLEMENTED, Code.NOT_FOUND) else log.warning
            write(call.method, code=code.name, error=message, **call.ids, ms=round(call.seconds * 1000, 1))
        else:
            code, message = Code.INTERNAL, f"crisp has a bug: {type(error).__name__}: {error}"
            log.error(call.method, code=code.name, **call.ids, ms=round(call.seconds * 1000, 1), exc_info=error)
        self._told(call, code.name)
        return _Failure(code, message)

    def _told(self, call: Call, code: str) -> None:
        for observe in self._observers:
            observe(call, code)

    async def start(self, socket_path: str, group_id: int | None) -> None:
        """Listen; the socket belongs to root and, if given, a group. Raises FAILED_PRECONDITION if its place is taken."""
        try:
            sockets.make_room(socket_path)
        except OSError as error:
            raise CrispError(Code.FAILED_PRECONDITION, f"cannot listen on {socket_path}: {error.strerror}") from None
        with sockets.bound_for_owner():
            if self._server.add_insecure_port(f"unix:{socket_path}") == 0:
                raise CrispError(Code.INTERNAL, f"cannot listen on {socket_path}")
            await self._server.start()
        if group_id is not None:
            os.chown(socket_path, 0, group_id)
            os.chmod(socket_path, 0o660)

    async def stop(self) -> None:
        """Take no more calls, give those under way a moment, leave the rest to recovery."""
        await self._server.stop(grace=0.5)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=limits.SHUTDOWN_SECONDS)
        for task in self._tasks:
            task.cancel()


def _call(method: MethodDescriptor, context: grpc.aio.ServicerContext[Any, Any]) -> Call:
    return Call(
        method.containing_service.full_name, method.name, method.server_streaming, tuple(context.invocation_metadata() or ())
    )


def _serialize(reply: Any) -> bytes:
    data: bytes = reply.data if isinstance(reply, Encoded) else reply.SerializeToString()
    if len(data) > limits.GRPC_MESSAGE_BYTES:
        log.error("reply too large for the kubelet", type=type(reply).__name__, bytes=len(data))
    return data


def _of_host(error: OSError) -> CrispError | None:
    """A system call that the host's state has made fail, as an error for people; None if it should not have failed."""
    what = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    if error.errno in EXHAUSTED:
        return CrispError(Code.RESOURCE_EXHAUSTED, what)
    return CrispError(Code.FAILED_PRECONDITION, what) if error.errno in UNWRITABLE else None


def _ids(message: Any) -> dict[str, str]:
    """The ids and names in a request or reply that make its log line useful."""
    found: dict[str, str] = {}
    if message is None:
        return found
    for name, key in (("pod_sandbox_id", "sandbox"), ("container_id", "container"), ("image_ref", "image")):
        if value := getattr(message, name, ""):
            found[key] = value[:19] if key == "image" else value[:13]
    config = getattr(message, "config", None)
    metadata = getattr(config, "metadata", None)
    if metadata is not None:
        namespace = getattr(metadata, "namespace", "")
        found["name"] = f"{namespace}/{metadata.name}" if namespace else metadata.name
    image = getattr(message, "image", None)
    if isinstance(image, api_pb2.ImageSpec):
        found["ref"] = image.image
    return found
