"""What crisp remembers of a sandbox and of a container: facts, as stored in state.db.

The CRI configuration is kept as the client sent it (labels and annotations must come back byte for byte). Times are
nanoseconds since the epoch, 0 until they happened.
"""

from __future__ import annotations

import base64
import socket
import time
from collections import OrderedDict
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

from proto import api_pb2 as cri
from runtime.lifecycle import ContainerState, SandboxState

PODS_IN_ORDER: Final = 4096
"""Of how many pods the last moment is known; many times as many as a node has."""


class _Clock:
    """Moments in nanoseconds since the epoch: the wall clock's, but for what the kubelet orders by them.

    Within one pod creation times and events strictly increase, also when the clock is set back: the kubelet decides by them
    which of two sandboxes, or of two attempts of a container, is newer. Nothing else is moved by that: start and end of a
    container decide for how long the kubelet backs off.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[str, int] = OrderedDict()

    def now(self) -> int:
        """By the wall clock."""
        return time.time_ns()

    def next_of(self, pod: str) -> int:
        """Now, or just after the last moment that was told of the pod with this uid."""
        moment = max(self._last.get(pod, 0) + 1, time.time_ns())
        self.seen(pod, moment)
        return moment

    def seen(self, pod: str, moment: int) -> None:
        """A record from an earlier life of the daemon has this time: stay above it."""
        self._last[pod] = max(self._last.pop(pod, 0), moment)
        while len(self._last) > PODS_IN_ORDER:
            self._last.popitem(last=False)


CLOCK = _Clock()


def _pack(value: Any) -> Any:
    if hasattr(value, "SerializeToString"):
        return base64.b64encode(value.SerializeToString(deterministic=True)).decode("ascii")
    return value


@dataclass(slots=True)
class SandboxRecord:
    """Facts about a sandbox."""

    id: str
    config: cri.PodSandboxConfig
    handler: str
    created_at: int
    ready_at: int = 0
    stopped_at: int = 0
    cgroup_parent: str = ""
    owns_cgroup_parent: bool = False
    cgroup: str = ""
    """Of the pause process, relative to the hierarchies' roots."""
    ips: list[str] = field(default_factory=list)
    network: dict[str, Any] = field(default_factory=dict)
    pause_pid: int = 0
    message: str = ""
    """Why the sandbox stopped, if nobody asked for it."""
    selinux_level: str = ""
    """Of all its containers that ask for none; empty where SELinux is off."""
    overhead: cri.LinuxContainerResources = field(default_factory=cri.LinuxContainerResources)
    resources: cri.LinuxContainerResources = field(default_factory=cri.LinuxContainerResources)
    """Both as last told by UpdatePodSandboxResources."""

    @property
    def state(self) -> SandboxState:
        """Derived from the times."""
        if self.stopped_at:
            return SandboxState.STOPPED
        return SandboxState.READY if self.ready_at else SandboxState.CREATING

    def hostname(self) -> str:
        """The pod's name of itself: the node's if it uses the node's network, or has been given none."""
        if self.config.linux.security_context.namespace_options.network == cri.NODE:
            return socket.gethostname()
        return self.config.hostname or socket.gethostname()

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {f.name: _pack(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Self:
        """From JSON; keys of another version that are unknown here are ignored."""
        known = _known(cls, document)
        known["config"] = cri.PodSandboxConfig.FromString(base64.b64decode(document["config"]))
        for name in ("overhead", "resources"):
            known[name] = cri.LinuxContainerResources.FromString(base64.b64decode(document.get(name, "")))
        return cls(**known)


@dataclass(slots=True)
class ContainerRecord:
    """Facts about a container."""

    id: str
    sandbox_id: str
    config: cri.ContainerConfig
    image_id: str
    log_path: str
    """Absolute, or empty if the client wants no log; never set later (the kubelet globs for it)."""
    created_at: int
    cgroup: str = ""
    """Relative to the hierarchies' roots."""
    handler: str = ""
    stop_signal: int = 15
    made_at: int = 0
    """When the OCI runtime's create was done."""
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    lost_at: int = 0
    pid: int = 0
    """Of its init, in the host's PID namespace."""
    uid: int = 0
    gid: int = 0
    groups: list[int] = field(default_factory=list)
    project: int = 0
    """Quota project of its writable layer, 0 if the file system counts none."""
    volume_images: list[str] = field(default_factory=list)
    """Ids of the images of its image volumes, in the order of their mounts."""
    resources: cri.LinuxContainerResources = field(default_factory=cri.LinuxContainerResources)
    """As last asked for, by create or by update."""
    restored_from: str = ""
    """Where the checkpoint lay of which it is made; it has no process before its start. Empty: made of an image."""
    image_name: str = ""
    """As status shows it: a stored tag, or what a checkpoint calls its image; empty in records of versions before 0.1."""
    image_ref: str = ""
    """repository@digest, or the image's id; empty as image_name."""

    @property
    def state(self) -> ContainerState:
        """Derived from the times."""
        if self.finished_at:
            return ContainerState.EXITED
        if self.lost_at:
            return ContainerState.UNKNOWN
        if self.started_at:
            return ContainerState.RUNNING
        return ContainerState.CREATED if self.made_at else ContainerState.CREATING

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {f.name: _pack(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Self:
        """From JSON; keys of another version that are unknown here are ignored."""
        known = _known(cls, document)
        known["config"] = cri.ContainerConfig.FromString(base64.b64decode(document["config"]))
        known["resources"] = cri.LinuxContainerResources.FromString(base64.b64decode(document["resources"]))
        return cls(**known)


def _known(cls: type, document: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {key: value for key, value in document.items() if key in names}
