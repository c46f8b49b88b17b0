"""Containers and pods by what people type: a name, an id, or the beginning of an id.

A container is called `NAME`, `POD/NAME` or `NAMESPACE/POD/NAME`; or as its pod, if it is the only one in there. Of several
attempts of one container, and of several sandboxes of one pod, the newest is meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.cli.output import fail
from runtime.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proto import api_pb2 as cri

REMOVE_AT_END = "io.crisp.remove-at-end"
"""As `oci.asked` has it, which takes more time to load."""

LEAST_DIGITS = 2
"""Of an id; one digit is a name's end rather than an id's beginning."""


class Node:
    """What there is, as it was a moment ago: asked for once."""

    def __init__(self, client: Client, code: int = 1) -> None:
        """`code` is what the command ends with where a name means nothing, or too much."""
        from proto import api_pb2 as cri  # noqa: PLC0415  --help needs no protobuf

        self._code = code
        self.pods = {pod.id: pod for pod in client.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items}
        self.containers = list(client.runtime.ListContainers(cri.ListContainersRequest()).containers)

    def container(self, word: str) -> cri.Container:
        """The container that is meant; ends the command if there is none, or more than one could be."""
        found: cri.Container = self._only(self._containers(word), word, "container")
        return found

    def pod(self, word: str) -> cri.PodSandbox:
        """The pod that is meant, as `container`."""
        found: cri.PodSandbox = self._only(self._pods(word), word, "pod")
        return found

    def is_container(self, word: str) -> bool:
        """Whether `container` would find any."""
        return bool(self._containers(word))

    def is_pod(self, word: str) -> bool:
        """Whether `pod` would find any."""
        return bool(self._pods(word))

    def _containers(self, word: str) -> list[cri.Container]:
        if found := _by_id(self.containers, word):
            return found
        if found := _newest(c for c in self.containers if word in self._names(c)):
            return found
        of_pods = [self.of_pod(pod.id) for pod in self._pods_called(word)]
        return _newest(container for containers in of_pods for container in containers)

    def _pods(self, word: str) -> list[cri.PodSandbox]:
        return _by_id(self.pods.values(), word) or self._pods_called(word)

    def of_pod(self, pod: str) -> list[cri.Container]:
        """The containers of a pod, by its id."""
        return [container for container in self.containers if container.pod_sandbox_id == pod]

    def is_over(self, pod: cri.PodSandbox) -> bool:
        """Whether nothing runs in a pod any more, and the daemon is about to remove it."""
        from proto import api_pb2 as cri  # noqa: PLC0415

        living = (cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING)
        return pod.annotations.get(REMOVE_AT_END) == "true" and not any(c.state in living for c in self.of_pod(pod.id))

    def pod_name(self, container: cri.Container) -> str:
        """NAMESPACE/NAME of a container's pod; empty if it went meanwhile."""
        pod = self.pods.get(container.pod_sandbox_id)
        return f"{pod.metadata.namespace}/{pod.metadata.name}" if pod is not None else ""

    def _names(self, container: cri.Container) -> tuple[str, ...]:
        name, pod = container.metadata.name, self.pods.get(container.pod_sandbox_id)
        if pod is None:
            return (name,)
        return name, f"{pod.metadata.name}/{name}", f"{pod.metadata.namespace}/{pod.metadata.name}/{name}"

    def _pods_called(self, word: str) -> list[cri.PodSandbox]:
        called = (p for p in self.pods.values() if word in (p.metadata.name, f"{p.metadata.namespace}/{p.metadata.name}"))
        newest: dict[tuple[str, str], cri.PodSandbox] = {}
        for pod in sorted(called, key=lambda p: p.created_at):
            newest[pod.metadata.namespace, pod.metadata.name] = pod
        return list(newest.values())

    def _only(self, found: list[Any], word: str, kind: str) -> Any:
        if not found:
            fail(f"no such {kind}: {word}", self._code)
        if len(found) > 1:
            fail(f"{word} could be any of {len(found)} {kind}s: {', '.join(sorted(map(self._called, found)))}", self._code)
        return found[0]

    def _called(self, thing: Any) -> str:
        pod = self.pod_name(thing) if hasattr(thing, "pod_sandbox_id") else thing.metadata.namespace
        return f"{pod}/{thing.metadata.name} ({thing.id[:13]})"


def _by_id(things: Iterable[Any], word: str) -> list[Any]:
    known = list(things)
    exact = [thing for thing in known if thing.id == word]
    if exact or len(word) < LEAST_DIGITS:
        return exact
    # A name may look like the beginning of somebody's id: what is called so comes first.
    if any(thing.metadata.name == word for thing in known):
        return []
    return [thing for thing in known if thing.id.startswith(word)]


def _newest(containers: Iterable[cri.Container]) -> list[cri.Container]:
    """The newest attempt of each container."""
    newest: dict[tuple[str, str], cri.Container] = {}
    for container in sorted(containers, key=lambda c: (c.created_at, c.metadata.attempt)):
        newest[container.pod_sandbox_id, container.metadata.name] = container
    return list(newest.values())
