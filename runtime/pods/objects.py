"""A sandbox and a container in memory: the record, the lock of the verbs that change it, and what is connected to it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imagesvc.store.images import Image
    from proto import nri_pb2 as nri
    from runtime.lifecycle import ContainerState, SandboxState
    from runtime.network.netns import Witness
    from runtime.records import ContainerRecord, SandboxRecord
    from runtime.shims.client import ShimClient

BUILD_LABEL: Final = "crisp.build"


@dataclass(slots=True, eq=False)
class Sandbox:
    """A sandbox in memory."""

    record: SandboxRecord
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the verbs that change the sandbox."""
    containers: dict[str, Container] = field(default_factory=dict)
    pause: asyncio.Future[None] | None = None
    """Of a shared PID namespace: done once its init has ended."""
    witness: asyncio.Future[Witness] | None = None
    """In its network namespace, once cAdvisor has asked for it: see sandbox_group."""
    network_left: bool = False
    """Its network is being given back: nobody may enter it any more."""
    listed: tuple[SandboxState, bytes] | None = None
    """Kept by `sandbox_status.entry`."""
    known: bool = False
    """NRI plugins are told of it, and not of its removal yet: see `plugin_hooks`."""
    stop_told: bool = False
    """NRI plugins are told that it stops."""
    build: str = ""
    """The build whose pod it is: see `builds`."""
    view: tuple[tuple[object, ...], nri.PodSandbox] | None = None
    """Kept by `plugin_hooks.pod_view`."""

    def shown_to(self, selector: Mapping[str, str]) -> bool:
        """Whether lists show it: those of builds, to whoever selects pods by just that."""
        return not self.build or BUILD_LABEL in selector


@dataclass(slots=True, eq=False)
class Container:
    """A container in memory."""

    record: ContainerRecord
    sandbox: Sandbox
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the verbs that change the container."""
    shim: ShimClient | None = None
    """Connected while the shim lives."""
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once finished_at or lost_at is."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the shim has left: nothing of the container is in the kernel any more."""
    watcher: asyncio.Task[None] | None = None
    beginning: bool = False
    """Its shim is at a create or start, which a hook or a volume can hold up: a kill need not wait for the lock."""
    starting: bool = False
    """StartContainer is under way and was not told as an event yet: see `EventBus.container_started`."""
    attached: int = 0
    """Clients that are attached to its streams."""
    process: dict[str, Any] | None = None
    """Its OCI process object, read when the first exec needs it."""
    listed: tuple[ContainerState, bytes] | None = None
    """Kept by `container_status.entry`."""
    resizing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while its limits are written. Whoever holds it asks nobody: plugins change containers while verbs hold `lock`."""
    known: bool = False
    """NRI plugins are told of it, and not of its removal yet: see `plugin_hooks`."""
    stop_told: bool = False
    """NRI plugins are told that it has ended."""
    stop_telling: asyncio.Task[None] | None = None
    telling: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while NRI plugins are told of it, so that they hear of one thing after the other."""
    spec: dict[str, Any] | None = None
    """Its OCI configuration while it is made and NRI plugins may ask for it; afterwards a file has it."""
    view: bytes | None = None
    """Kept by `plugin_hooks.container_view`."""


@dataclass(slots=True, eq=False)
class Lease:
    """A build: see `builds`."""

    id: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is ended."""
    work: set[asyncio.Future[None]] = field(default_factory=set)
    """Calls that are under way."""
    images: dict[str, Image] = field(default_factory=dict)
    """Held until its end, by their ids."""
    mounts: set[str] = field(default_factory=set)
    numbers: int = 0
    """Of mounts, so far."""
    ended: bool = False
    """Its call has: nothing more is done for it."""
    gone: bool = False
    """So is all that it had."""
