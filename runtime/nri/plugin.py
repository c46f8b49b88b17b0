"""One plugin: its registration, what it wants to hear of, and one request after the other.

    connects ──RegisterPlugin──▶ Configure ──▶ Synchronize ──▶ ready
        └──────────────── does not answer, errs, leaves ─────────▶ closed

A plugin is asked one thing at a time, as by every runtime so far: many plugins rely on it. Who asks while it is still being
synchronized waits for that. Every wait is bounded by the time-out of one request, after which the plugin is closed; what
waits for it goes on without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog
from google.protobuf.message import DecodeError, Message

from proto import nri_pb2 as nri
from proto import ttrpc
from proto.errors import Code, CrispError, failed_precondition, invalid
from proto.version import VERSION
from runtime.nri.connection import Broken, Connection

if TYPE_CHECKING:
    from runtime.config.nri import NriConfig
    from runtime.nri.figures import Figures

PLUGIN_SERVICE: Final = "nri.pkg.api.v1alpha1.Plugin"
RUNTIME_SERVICE: Final = "nri.pkg.api.v1alpha1.Runtime"

NRI_VERSION: Final = "v0.12.2"
"""Of the protocol that is spoken here; plugins ask whether their runtime knows what they need."""

VALID_EVENTS: Final = (1 << (nri.LAST - 1)) - 1

REPLIES: Final[dict[int, tuple[str, type[Message]]]] = {
    nri.RUN_POD_SANDBOX: ("RunPodSandbox", nri.RunPodSandboxResponse),
    nri.STOP_POD_SANDBOX: ("StopPodSandbox", nri.StopPodSandboxResponse),
    nri.REMOVE_POD_SANDBOX: ("RemovePodSandbox", nri.RemovePodSandboxResponse),
    nri.CREATE_CONTAINER: ("CreateContainer", nri.CreateContainerResponse),
    nri.POST_CREATE_CONTAINER: ("PostCreateContainer", nri.PostCreateContainerResponse),
    nri.START_CONTAINER: ("StartContainer", nri.StartContainerResponse),
    nri.POST_START_CONTAINER: ("PostStartContainer", nri.PostStartContainerResponse),
    nri.UPDATE_CONTAINER: ("UpdateContainer", nri.UpdateContainerResponse),
    nri.POST_UPDATE_CONTAINER: ("PostUpdateContainer", nri.PostUpdateContainerResponse),
    nri.STOP_CONTAINER: ("StopContainer", nri.StopContainerResponse),
    nri.REMOVE_CONTAINER: ("RemoveContainer", nri.RemoveContainerResponse),
    nri.UPDATE_POD_SANDBOX: ("UpdatePodSandbox", nri.UpdatePodSandboxResponse),
    nri.POST_UPDATE_POD_SANDBOX: ("PostUpdatePodSandbox", nri.PostUpdatePodSandboxResponse),
    nri.VALIDATE_CONTAINER_ADJUSTMENT: ("ValidateContainerAdjustment", nri.ValidateContainerAdjustmentResponse),
}
"""Method and reply of each event."""

ANSWERED: Final = {
    nri.CREATE_CONTAINER,
    nri.UPDATE_CONTAINER,
    nri.STOP_CONTAINER,
    nri.UPDATE_POD_SANDBOX,
    nri.VALIDATE_CONTAINER_ADJUSTMENT,
}
"""Those that always had a method. Plugins older than v0.12 hear of all others by StateChange."""

PIECE_BYTES: Final = ttrpc.LONGEST - (64 << 10)
"""Of pods and containers in one Synchronize."""

TOLD_SHARE: Final = 0.9
"""A plugin is told a deadline this much shorter than the wait for it, so that what it answers at its end still arrives."""

SAID_CHARACTERS: Final = 1024
"""Of what a plugin gives as its reason: no gRPC client takes a status of megabytes."""

log = structlog.get_logger(__name__)

Update = Callable[["Plugin", nri.UpdateContainersRequest], Awaitable[nri.UpdateContainersResponse]]


class Plugin:
    """A plugin, from its connection on."""

    def __init__(self, config: NriConfig, figures: Figures, update: Update, *, index: str = "", name: str = "") -> None:
        """`index` and `name` are known of a pre-installed plugin; any other one tells them."""
        self.index, self.name = index, name
        self.preinstalled = bool(name)
        self.own_pid = 0
        """Of a pre-installed plugin, whose connection was made here."""
        self.settings = ""
        """The plugin's own configuration, of a file."""
        self.version = ""
        """Of NRI, as the plugin tells it."""
        self.events = 0
        self.connection = Connection(self._serve, self._ended)
        self.on_end: Callable[[], None] = lambda: None
        self._config = config
        self._figures = figures
        self._update = update
        self._registered = asyncio.Event()
        self._settled = asyncio.Event()
        """It is synchronized, or closed."""
        self._one_at_a_time = asyncio.Lock()
        self._asking: set[asyncio.Task[Any]] = set()
        self._without_method: set[int] = set()
        self._said_which = True
        """It has named its events; who names none gets all, and need not know them."""

    def __str__(self) -> str:
        return f"{self.index or '??'}-{self.name or 'plugin'}"

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return not self.connection.open

    @property
    def ready(self) -> bool:
        """Whether it is synchronized."""
        return self._settled.is_set() and not self.closed

    @property
    def pid(self) -> int:
        """Its process, 0 if that is not known."""
        return self.own_pid or self.connection.peer_pid()

    def wants(self, event: int) -> bool:
        """Whether it has subscribed to the event."""
        return bool(self.events >> (event - 1) & 1)

    def describe(self) -> dict[str, Any]:
        """For people: `crictl info`."""
        return {
            "index": self.index,
            "name": self.name,
            "kind": "pre-installed" if self.preinstalled else "external",
            "pid": self.pid,
            "nriVersion": self.version,
            "events": [method for event, (method, _) in sorted(REPLIES.items()) if self.wants(event)],
            "state": "ready" if self.ready else "synchronizing",
        }

    def close(self, reason: str, why: str) -> None:
        """End the connection; says so."""
        self.connection.close(reason, why)

    def _ended(self) -> None:
        connection = self.connection
        self._figures.closed[connection.reason] += 1
        if connection.reason in ("left", "shutdown") and not self.preinstalled:
            log.info("nri plugin has left", plugin=str(self), why=connection.why)
        elif connection.reason != "shutdown":
            log.warning("nri plugin closed", plugin=str(self), reason=connection.reason, why=connection.why)
        self._registered.set()
        self._settled.set()
        self.on_end()

    # ---- what the plugin asks ----

    async def _serve(self, call: ttrpc.Call) -> bytes:
        if call.service != RUNTIME_SERVICE or call.method not in ("RegisterPlugin", "UpdateContainers"):
            raise CrispError(Code.UNIMPLEMENTED, f"no {call.method} of {call.service}")
        try:
            if call.method == "RegisterPlugin":
                self._register(nri.RegisterPluginRequest.FromString(call.payload))
                return b""
            request = nri.UpdateContainersRequest.FromString(call.payload)
        except DecodeError:
            self.close("protocol", f"its {call.method} cannot be read")
            raise invalid("the message cannot be read") from None
        if not self.ready:
            raise failed_precondition("the plugin is not synchronized yet")
        return (await self._update(self, request)).SerializeToString()

    def _register(self, request: nri.RegisterPluginRequest) -> None:
        if self._registered.is_set():
            raise failed_precondition("the plugin is registered already")
        if not self.preinstalled:
            problem = check_name(request.plugin_name) or check_index(request.plugin_idx)
            if problem:
                # Not at once: the answer is to reach it.
                asyncio.get_running_loop().call_soon(self.close, "registration", problem)
                raise invalid(problem)
            self.index, self.name = request.plugin_idx, request.plugin_name
        self.version = request.NRI_version
        self._registered.set()

    # ---- what it is asked ----

    async def introduce(self) -> bool:
        """Wait for its registration and configure it; whether both succeeded."""
        seconds = self._config.plugin_registration_timeout
        try:
            async with asyncio.timeout(seconds):
                await self._registered.wait()
        except TimeoutError:
            self.close("registration", f"it has not registered within {seconds:g} s")
        if self.closed:
            return False
        log.info("nri plugin registered", plugin=str(self), pid=self.pid, version=self.version)
        request = nri.ConfigureRequest(
            config=self.settings,
            runtime_name="crisp",
            runtime_version=VERSION,
            registration_timeout=int(seconds * 1000),
            request_timeout=int(self._config.plugin_request_timeout * 1000),
            NRI_version=NRI_VERSION,
        )
        try:
            reply = await self._request("Configure", request, nri.ConfigureResponse, self._config.plugin_request_timeout)
        except CrispError as error:
            self.close("registration", error.message)
            return False
        if reply is None:
            return False
        if reply.events & ~VALID_EVENTS:
            self.close("registration", f"it subscribes to events that there are not: {reply.events & ~VALID_EVENTS:#x}")
            return False
        self.events = reply.events or VALID_EVENTS
        self._said_which = bool(reply.events)
        return True

    async def synchronize(
        self, pods: Sequence[nri.PodSandbox], containers: Sequence[nri.Container]
    ) -> list[nri.ContainerUpdate]:
        """Tell it what there is; what it wants changed. All pieces together have the time of one request."""
        until = time.monotonic() + self._config.plugin_request_timeout
        updates: list[nri.ContainerUpdate] = []
        try:
            async with self._one_at_a_time:
                for request in pieces(pods, containers):
                    left = max(0.001, until - time.monotonic())
                    reply = await self._request("Synchronize", request, nri.SynchronizeResponse, left)
                    if reply is None:
                        return []
                    if request.more and (reply.update or not reply.more):
                        self.close("synchronization", "it does not take a synchronization in pieces")
                        return []
                    updates.extend(reply.update)
        except CrispError as error:
            self.close("synchronization", error.message)
        if not self.closed:
            log.info("nri plugin synchronized", plugin=str(self), pods=len(pods), containers=len(containers))
        self._settled.set()
        return updates

    async def ask(self, event: int, request: Message) -> Any:
        """Its reply to an event; None if it does not want it, or is or gets closed.

        Raises CrispError if it refuses. Cancelling the caller does not cancel the request: the plugin has it.
        """
        if not self.wants(event) or self.closed:
            return None
        task = asyncio.ensure_future(self._ask(event, request))
        self._asking.add(task)
        task.add_done_callback(self._asked)
        return await asyncio.shield(task)

    def _asked(self, task: asyncio.Task[Any]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # seen, though the caller may be gone

    async def _ask(self, event: int, request: Message) -> Any:
        if not self._settled.is_set():
            await self._settled.wait()
        method, reply_type = REPLIES[event]
        async with self._one_at_a_time:
            seconds = self._config.plugin_request_timeout
            if event in self._without_method:
                return await self._state_change(event, request, seconds)
            try:
                return await self._request(method, request, reply_type, seconds)
            except CrispError as error:
                if error.code is not Code.UNIMPLEMENTED or (event in ANSWERED and self._said_which):
                    raise
            if event in ANSWERED:
                self.events &= ~(1 << (event - 1))
                return reply_type()
            self._without_method.add(event)
            return await self._state_change(event, request, seconds)

    async def _state_change(self, event: int, request: Any, seconds: float) -> Any:
        change = nri.StateChangeEvent(pod=request.pod, container=getattr(request, "container", None))
        change.event = event  # type: ignore[assignment]
        return await self._request("StateChange", change, nri.Empty, seconds)

    async def _request(self, method: str, request: Message, reply_type: type[Any], seconds: float) -> Any:
        begin, outcome = time.monotonic(), "gone"
        try:
            told = seconds * TOLD_SHARE
            reply = await self.connection.call(PLUGIN_SERVICE, method, request.SerializeToString(), seconds, told)
            if reply.code == ttrpc.OK:
                answer = reply_type.FromString(reply.payload)
                outcome = "ok"
                return answer
            if reply.code == ttrpc.DEADLINE_EXCEEDED:
                raise TimeoutError
            outcome = "refused"
        except TimeoutError:
            outcome = "timeout"
            self.close("timeout", f"it has not answered {method} within {seconds:g} s")
            return None
        except Broken:
            return None
        except DecodeError:
            self.close("protocol", f"its answer to {method} cannot be read")
            return None
        except ttrpc.TooLong as error:
            outcome = "refused"
            raise failed_precondition(f"NRI plugin {self} cannot be sent {method}: {error}") from None
        finally:
            self._figures.asked(str(self), method, outcome, time.monotonic() - begin)
        code = Code.UNIMPLEMENTED if reply.code == ttrpc.UNIMPLEMENTED else Code.FAILED_PRECONDITION
        raise CrispError(code, f"NRI plugin {self} refuses {method}: {reply.message[:SAID_CHARACTERS]}")

    async def shut_down(self, seconds: float) -> None:
        """Tell it that the daemon ends, and end the connection."""
        if self.ready:
            try:
                await self._request("Shutdown", nri.Empty(), nri.Empty, seconds)
            except CrispError as error:
                log.debug("nri plugin refuses Shutdown", plugin=str(self), error=error.message)
        self.close("shutdown", "the daemon ends")


def pieces(pods: Sequence[nri.PodSandbox], containers: Sequence[nri.Container]) -> Iterator[nri.SynchronizeRequest]:
    """Requests that fit into a message, in order; all but the last say that there is more."""
    request, size = nri.SynchronizeRequest(), 0
    for field, one in (*(("pods", pod) for pod in pods), *(("containers", container) for container in containers)):
        length = one.ByteSize() + 8
        if size and size + length > PIECE_BYTES:
            request.more = True
            yield request
            request, size = nri.SynchronizeRequest(), 0
        getattr(request, field).append(one)
        size += length
    yield request


def check_index(index: str) -> str:
    """What is wrong with a plugin's index; empty if nothing."""
    good = len(index) == 2 and index.isascii() and index.isdigit()
    return "" if good else f"plugin index {index!r} is not two digits"


def check_name(name: str) -> str:
    """What is wrong with a plugin's name; empty if nothing."""
    good = name and all(c.isascii() and (c.isalnum() or c in "-_.+") for c in name)
    return "" if good else f"plugin name {name!r} is empty, or has other characters than letters, digits and -_.+"
