"""The node as the daemon sees it: configuration, the other rooms, and all sandboxes and containers in memory.

The verbs on sandboxes and containers are functions in modules of their own that take the Node. Lists and status calls read
these dictionaries and take no lock.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from proto.errors import Code, CrispError, invalid, not_found
from runtime import limits
from runtime.joining import Joiner
from runtime.oci.seccomp_programs import Programs
from runtime.pool import Pool
from runtime.undoing import Undoing

if TYPE_CHECKING:
    from imagesvc.service import ImageService
    from runtime.config.settings import Config
    from runtime.host.handlers import Handlers
    from runtime.host.host import Host
    from runtime.host.layer_form import LayerForm
    from runtime.network.seam import PodNetwork
    from runtime.nri.plugins import Plugins
    from runtime.paths import Paths
    from runtime.pods.events import EventBus
    from runtime.pods.objects import Container, Lease, Sandbox
    from runtime.shims.fork_server import ForkServer
    from runtime.store.database import Store

T = TypeVar("T")


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
    layers: LayerForm
    events: EventBus
    blocking: Pool
    plugins: Plugins
    joiner: Joiner = field(default_factory=Joiner)
    undoing: Undoing = field(default_factory=Undoing)
    filters: Programs = field(default_factory=Programs)
    """seccomp filters."""
    sandboxes: dict[str, Sandbox] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    builds: dict[str, Lease] = field(default_factory=dict)
    """Those that have not ended."""
    recovery_seconds: float = 0.0
    lost_containers: int = 0
    """Containers that were ended because their shim was killed."""
    looked_at: bool = False
    """Somebody looks for pods in the cgroup tree: see sandbox_group."""
    to_be_removed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when something is made that is removed at its end: see ended."""
    removed: dict[str, int] = field(default_factory=dict)
    """Exit codes of the containers that were removed last, the oldest first, by their ids."""
    pod_cidr: str = ""
    """As the kubelet handed it over."""

    def remember(self, container: Container) -> None:
        """Keep the exit code of a container that is being removed, for who has waited for its end and comes too late."""
        self.removed[container.record.id] = container.record.exit_code
        while len(self.removed) > limits.REMOVED_CONTAINERS:
            del self.removed[next(iter(self.removed))]

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


def new_executor() -> Pool:
    """The one pool for blocking system calls."""
    return Pool(limits.BLOCKING_THREADS, thread_name_prefix="blocking")
