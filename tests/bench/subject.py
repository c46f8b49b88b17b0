"""A runtime under measurement: its client, its image, and pods on it."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from proto import api_pb2 as cri
from tests.bench.runtimes import Runtime
from tests.harness.client import Client
from tests.images.image_builder import Layout, Member, busybox
from tests.images.registry_server import Registry

WORKLOAD = b"/bin/sleep\0100000\0"
LINES = "/lines"
LINES_BYTES = 8 << 20
"""Of a file in the image, in lines of 100 bytes."""
AT_ONCE = 8
"""Pods that are made or removed at once where that is not what is measured."""


@dataclass
class Subject:
    """A running runtime, and what is needed to make pods on it."""

    runtime: Runtime
    client: Client
    image: str
    """Its reference."""
    pulled: str
    """Its id at this runtime."""
    logs: Path

    def pod(self, *command: str, stdin: bool = False) -> Pod:
        """Start a pod with one container, which sleeps if nothing else is asked for."""
        name = f"bench-{secrets.token_hex(6)}"
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=name, namespace="bench"),
            hostname=name,
            log_directory=str(self.logs),
        )
        config.linux.security_context.namespace_options.pid = cri.CONTAINER
        runtime, handler = self.client.runtime, self.runtime.handler
        sandbox = runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config, runtime_handler=handler)).pod_sandbox_id
        wanted = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="c"),
            image=cri.ImageSpec(image=self.pulled),
            command=command or ("/bin/sleep", "100000"),
            log_path=f"{name}.log",
            stdin=stdin,
        )
        wanted.linux.security_context.namespace_options.pid = cri.CONTAINER
        container = runtime.CreateContainer(
            cri.CreateContainerRequest(pod_sandbox_id=sandbox, config=wanted, sandbox_config=config)
        ).container_id
        runtime.StartContainer(cri.StartContainerRequest(container_id=container))
        return Pod(self.client, sandbox, container, self.logs / f"{name}.log")

    def pods(self, count: int) -> list[Pod]:
        """Start many."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda _: self.pod(), range(count)))


@dataclass
class Pod:
    """A running pod with one container."""

    client: Client
    sandbox: str
    container: str
    log: Path

    def exec(self) -> None:
        self.client.runtime.ExecSync(cri.ExecSyncRequest(container_id=self.container, cmd=["/bin/true"], timeout=30))

    def wait(self) -> None:
        """Until its container has exited."""
        request = cri.ContainerStatusRequest(container_id=self.container)
        while self.client.runtime.ContainerStatus(request).status.state != cri.CONTAINER_EXITED:
            time.sleep(0.01)

    def end(self) -> None:
        runtime = self.client.runtime
        runtime.StopContainer(cri.StopContainerRequest(container_id=self.container, timeout=0))
        runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=self.container))
        runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=self.sandbox))
        runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=self.sandbox))


def end_all(pods: Iterable[Pod]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(Pod.end, pods))


@contextmanager
def running(runtime: Runtime, image: str, logs: Path) -> Iterator[Subject]:
    """Start the runtime and have it pull the image."""
    client = runtime.start()
    try:
        pulled = client.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=image)), timeout=600).image_ref
        yield Subject(runtime, client, image, pulled, logs)
    finally:
        client.__exit__(None, None, None)
        runtime.stop()


def push_image(base: Path, registry: Registry) -> str:
    """Busybox and a file of lines; its reference."""
    layout = Layout(base / "layout")
    line = b"x" * 99 + b"\n"
    layout.image(
        "v1",
        [busybox(Member(LINES.lstrip("/"), line * (LINES_BYTES // len(line))))],
        {"Entrypoint": ["/bin/sleep", "1000000"]},
    )
    layout.push("v1", f"{registry.host}/bench/pod:v1")
    return f"{registry.host}/bench/pod:v1"


def milliseconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


def median(work: Callable[[], object], rounds: int) -> float:
    """Milliseconds."""
    return statistics.median(milliseconds(work) for _ in range(rounds))
