"""Pods beside containerd: start, teardown, ExecSync, memory for each further pod.

    .venv/bin/python -m tests.bench.pods [--rounds 20] [--pods 30]

Both are driven by the same client, with the same image from the same registry, one after the other in one run, crisp twice:
with the OCI runtime that it chooses, and with runc, which containerd uses. Times are medians in milliseconds.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from proto import api_pb2 as cri
from runtime.client import Client
from tests.bench.runtimes import Containerd, Crisp, Runtime, comm, isolate, pss
from tests.images.image_builder import Layout, busybox
from tests.images.registry_server import Registry

WORKLOAD = b"/bin/sleep\0100000\0"
MIB = 1024 * 1024


@dataclass
class Figures:
    """What one runtime took."""

    name: str
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Pod:
    """A running pod with one container."""

    client: Client
    sandbox: str
    container: str

    @classmethod
    def start(cls, client: Client, image: str, handler: str, logs: Path) -> Pod:
        name = f"bench-{secrets.token_hex(6)}"
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=name, namespace="bench"), hostname=name, log_directory=str(logs)
        )
        config.linux.security_context.namespace_options.pid = cri.CONTAINER
        sandbox = client.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config, runtime_handler=handler))
        wanted = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="c"),
            image=cri.ImageSpec(image=image),
            command=["/bin/sleep", "100000"],
            log_path=f"{name}.log",
        )
        wanted.linux.security_context.namespace_options.pid = cri.CONTAINER
        container = client.runtime.CreateContainer(
            cri.CreateContainerRequest(pod_sandbox_id=sandbox.pod_sandbox_id, config=wanted, sandbox_config=config)
        )
        client.runtime.StartContainer(cri.StartContainerRequest(container_id=container.container_id))
        return cls(client, sandbox.pod_sandbox_id, container.container_id)

    def exec(self) -> None:
        self.client.runtime.ExecSync(cri.ExecSyncRequest(container_id=self.container, cmd=["/bin/true"], timeout=30))

    def end(self) -> None:
        runtime = self.client.runtime
        runtime.StopContainer(cri.StopContainerRequest(container_id=self.container, timeout=0))
        runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=self.container))
        runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=self.sandbox))
        runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=self.sandbox))


def milliseconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


@contextmanager
def running(runtime: Runtime) -> Iterator[Client]:
    client = runtime.start()
    try:
        yield client
    finally:
        client.__exit__(None, None, None)
        runtime.stop()


def measure(runtime: Runtime, image: str, options: argparse.Namespace, logs: Path) -> Figures:
    figures = Figures(f"{runtime.name} ({runtime.handler or 'its default'})")
    with running(runtime) as client:
        pulled = client.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=image))).image_ref

        def pod() -> Pod:
            return Pod.start(client, pulled, runtime.handler, logs)

        pod().end()
        starts, execs, ends = [], [], []
        for _ in range(options.rounds):
            made: list[Pod] = []
            starts.append(milliseconds(lambda made=made: made.append(pod())))
            execs.append(statistics.median(milliseconds(made[0].exec) for _ in range(3)))
            ends.append(milliseconds(made[0].end))
        figures.values["pod start, ms"] = statistics.median(starts)
        figures.values["ExecSync, ms"] = statistics.median(execs)
        figures.values["teardown, ms"] = statistics.median(ends)
        figures.values.update(memory(runtime, pod, options.pods))
        count = options.rounds * 2
        with ThreadPoolExecutor(8) as pool:
            took = milliseconds(lambda: list(pool.map(lambda _: pod().end(), range(count))))
        figures.values["pods/s, 8 at once"] = count / took * 1000
    return figures


def memory(runtime: Runtime, pod: Callable[[], Pod], count: int) -> dict[str, float]:
    """PSS of the runtime's processes with few and with many pods; the pods' own programs are not counted."""
    pods = [pod() for _ in range(5)]
    few = pss(runtime.processes(WORKLOAD))
    pods += [pod() for _ in range(count)]
    many = pss(runtime.processes(WORKLOAD))
    for each in pods:
        each.end()
    idle = pss([p for p in runtime.processes(WORKLOAD) if "shim" not in comm(p)])
    return {"memory per pod, MiB": (many - few) / count / MIB, "daemon, MiB": idle / MIB}


def table(results: list[Figures]) -> str:
    """Markdown; ratios are to the first column."""
    base = results[0]
    lines = ["| | " + " | ".join(r.name + (" | ratio" if r is not base else "") for r in results) + " |"]
    lines.append("|---|" + "---|" * (2 * len(results) - 1))
    for key, reference in base.values.items():
        cells = [f"{reference:.1f}"]
        for result in results[1:]:
            cells += [f"{result.values[key]:.1f}", f"{result.values[key] / reference:.2f}"]
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pods", type=int, default=30)
    options = parser.parse_args()
    isolate()
    base = Path(tempfile.mkdtemp(prefix="crisp-bench-", dir="/var/tmp"))
    registry = Registry(base / "registry")
    try:
        layout = Layout(base / "layout")
        layout.image("v1", [busybox()], {"Entrypoint": ["/bin/sleep", "1000000"]})
        layout.push("v1", f"{registry.host}/bench/pod:v1")
        image = f"{registry.host}/bench/pod:v1"
        (base / "logs").mkdir()
        runtimes: list[Runtime] = [
            Containerd(base / "containerd", image),
            Crisp(base / "crisp"),
            Crisp(base / "crisp-runc", "runc"),
        ]
        print(table([measure(runtime, image, options, base / "logs") for runtime in runtimes]))
    finally:
        registry.close()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
