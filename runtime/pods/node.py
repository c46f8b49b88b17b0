"""The node as the daemon sees it: configuration, the other rooms, and all sandboxes and containers in memory.

The verbs on sandboxes and containers are functions in modules of their own that take the Node. Lists and status calls read
these dictionaries and take no lock.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from proto.errors import Code, CrispError, invalid, not_found
from runtime import limits
from runtime.joining import Joiner
from runtime.records import ContainerRecord, SandboxRecord
from runtime.undoing import Undoing

if TYPE_CHECKING:
    from imagesvc.service import ImageService
    from proto import api_pb2 as cri
    from runtime.config.settings import Config
    from runtime.host.handlers import Handlers
    from runtime.host.host import Host
    from runtime.network.seam import PodNetwork
    from runtime.paths import Paths
    from runtime.pods.events import EventBus
    from runtime.shims.client import ShimClient
    from runtime.shims.fork_server import ForkServer
    from runtime.store.database import Store

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Sandbox:
    """A sandbox in memory."""

    record: SandboxRecord
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the verbs that change the sandbox."""
    containers: dict[str, Container] = field(default_factory=dict)
    listed: cri.PodSandbox | None = None
    """Kept by `sandbox_status.item`."""


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
    starting: bool = False
    """StartContainer is under way and was not told as an event yet: an exit that overtakes it tells it first."""
    process: dict[str, Any] | None = None
    """Its OCI process object, read when the first exec needs it."""
    listed: cri.Container | None = None
    """Kept by `container_status.item`."""


@dataclass(slots=True)
class Node:
    """Everything that the verbs need."""

    config: Config
    paths: Paths
    host: Host
    store: Store
    handlers: Handlers
    fork_server: ForkServer
    network: PodNetwork
    images: ImageService
    events: EventBus
    blocking: ThreadPoolExecutor
    joiner: Joiner = field(default_factory=Joiner)
    undoing: Undoing = field(default_factory=Undoing)
    sandboxes: dict[str, Sandbox] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    recovery_seconds: float = 0.0
    lost_containers: int = 0
    """Containers that were ended because their shim was killed."""
    pod_cidr: str = ""
    """As the kubelet handed it over."""

    def sandbox(self, reference: str) -> Sandbox:
        """The sandbox with this id or unique beginning of an id; NOT_FOUND if there is none."""
        return self.sandboxes[_find(self.sandboxes, reference, "sandbox")]

    def find_sandbox(self, reference: str) -> Sandbox | None:
        """As `sandbox`, for calls to which a missing one is as good as done."""
        return _unless_missing(self.sandbox, reference)

    def find_container(self, reference: str) -> Container | None:
        """As `container`, for calls to which a missing one is as good as done."""
        return _unless_missing(self.container, reference)

    def container(self, reference: str) -> Container:
        """The container with this id or unique beginning of an id; NOT_FOUND if there is none."""
        return self.containers[_find(self.containers, reference, "container")]


def _unless_missing(find: Callable[[str], T], reference: str) -> T | None:
    try:
        return find(reference)
    except CrispError as error:
        if error.code is Code.NOT_FOUND:
            return None
        raise


def _find(objects: Iterable[str], reference: str, kind: str) -> str:
    if not reference:
        raise invalid(f"no {kind} id given")
    if reference in objects:
        return reference
    matches = [key for key in objects if key.startswith(reference)]
    if len(matches) > 1:
        raise invalid(f"{kind} id {reference} is the beginning of {len(matches)} ids: give more of it")
    if not matches:
        raise not_found(f"no {kind} with id {reference}")
    return matches[0]


def new_id() -> str:
    """A random id: 64 hexadecimal digits, which is what the kubelet recognises in cgroup names."""
    return secrets.token_hex(32)


def new_executor() -> ThreadPoolExecutor:
    """The one pool for blocking system calls."""
    return ThreadPoolExecutor(limits.BLOCKING_THREADS, thread_name_prefix="blocking")
