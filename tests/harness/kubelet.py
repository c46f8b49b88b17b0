"""Plays the kubelet's part: pods and containers as the kubelet asks for them, over the socket."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.harness import pure_v2
from tests.harness.client import Client
from tests.harness.daemon import Daemon
from tests.harness.waiting import WAIT_SECONDS, wait_until


@dataclass
class Pod:
    """A sandbox that runs, with what it was asked for."""

    kubelet: Kubelet
    id: str
    config: cri.PodSandboxConfig
    attempts: itertools.count[int] = field(default_factory=itertools.count)

    def status(self) -> cri.PodSandboxStatus:
        return self.kubelet.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=self.id)).status

    def stop(self) -> None:
        self.kubelet.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=self.id))

    def remove(self) -> None:
        self.kubelet.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=self.id))

    def create(self, *command: str, config: cri.ContainerConfig | None = None) -> Container:
        """Create a container; `config` carries whatever is special about it."""
        wanted = cri.ContainerConfig()
        if config is not None:
            wanted.CopyFrom(config)
        if not wanted.HasField("metadata"):
            wanted.metadata.name = f"c{next(self.attempts)}"
        wanted.metadata.SetInParent()
        if not wanted.image.image:
            wanted.image.image = self.kubelet.image
        wanted.log_path = wanted.log_path or f"{wanted.metadata.name}/{wanted.metadata.attempt}.log"
        Path(self.config.log_directory, wanted.log_path).parent.mkdir(parents=True, exist_ok=True)
        wanted.command.extend(command)
        options = wanted.linux.security_context.namespace_options
        mine = self.config.linux.security_context.namespace_options
        options.network, options.ipc = mine.network, mine.ipc
        if mine.pid != cri.CONTAINER or options.pid == cri.POD:
            options.pid = mine.pid
        reply = self.kubelet.runtime.CreateContainer(
            cri.CreateContainerRequest(pod_sandbox_id=self.id, config=wanted, sandbox_config=self.config)
        )
        return Container(self, reply.container_id)

    def run(self, *command: str, config: cri.ContainerConfig | None = None) -> Container:
        """Create and start."""
        container = self.create(*command, config=config)
        container.start()
        return container

    def run_trap(self, trap: str, signal: str, config: cri.ContainerConfig | None = None) -> Container:
        """Run a shell that has a trap set when this returns: before, its signals would be lost on it."""
        script = f"trap '{trap}' {signal}; echo set; while true; do sleep 0.05; done"
        container = self.run("/bin/sh", "-c", script, config=config)
        wait_until(lambda: "set" in container.output())
        return container

    def shell(self, script: str, config: cri.ContainerConfig | None = None) -> Container:
        """Run a shell script to its end."""
        container = self.run("/bin/sh", "-c", script, config=config)
        container.wait()
        return container


@dataclass
class Container:
    """A container."""

    pod: Pod
    id: str

    @property
    def runtime(self) -> Any:
        return self.pod.kubelet.runtime

    def start(self) -> None:
        self.runtime.StartContainer(cri.StartContainerRequest(container_id=self.id))

    def stop(self, timeout: int = 0) -> None:
        self.runtime.StopContainer(cri.StopContainerRequest(container_id=self.id, timeout=timeout))

    def remove(self) -> None:
        self.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=self.id))

    def update(self, **resources: Any) -> None:
        linux = cri.LinuxContainerResources(**resources)
        self.runtime.UpdateContainerResources(cri.UpdateContainerResourcesRequest(container_id=self.id, linux=linux))

    def status(self) -> cri.ContainerStatus:
        return self.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=self.id)).status

    def wait(self) -> cri.ContainerStatus:
        """Wait until it has ended."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (status := self.status()).state == cri.CONTAINER_RUNNING:
            assert time.monotonic() < deadline, f"container {self.id} does not end"
            time.sleep(0.01)
        return status

    def exec(self, *command: str, timeout: int = 10) -> cri.ExecSyncResponse:
        return self.runtime.ExecSync(cri.ExecSyncRequest(container_id=self.id, cmd=command, timeout=timeout))

    def sh(self, script: str) -> str:
        """Output of a shell script that must succeed."""
        reply = self.exec("/bin/sh", "-c", script)
        assert reply.exit_code == 0, (reply.stdout, reply.stderr)
        return reply.stdout.decode()

    def log_lines(self) -> list[tuple[str, str, str]]:
        """Stream, tag and text of each line of the log."""
        with open(self.status().log_path, encoding="utf-8") as file:
            return [tuple(line.rstrip("\n").split(" ", 3)[1:]) for line in file]  # type: ignore[misc]

    def output(self, stream: str = "stdout") -> str:
        """What it has written, put together from the log."""
        return "".join(t if tag == "P" else t + "\n" for s, tag, t in self.log_lines() if s == stream)


class Kubelet:
    """Makes pods on one daemon."""

    def __init__(self, daemon: Daemon, image: str) -> None:
        self.daemon = daemon
        self.image = image
        self.logs = daemon.directory / "logs"

    @classmethod
    def on(cls, daemon: Daemon, rootfs: Path) -> Self:
        """On a daemon that runs, with an image of a plain directory."""
        assert daemon.client is not None
        request = admin.AddRootfsRequest(name="localhost/busybox:test", directory=str(rootfs))
        return cls(daemon, daemon.client.admin.AddRootfs(request).image_id)

    @property
    def client(self) -> Client:
        assert self.daemon.client is not None
        return self.daemon.client

    @property
    def runtime(self) -> Any:
        return self.client.runtime

    @property
    def images(self) -> Any:
        return self.client.images

    def pod_config(self, name: str = "", **linux: Any) -> cri.PodSandboxConfig:
        """A pod as the kubelet asks for it, with namespaces of its own."""
        name = name or f"pod-{secrets.token_hex(4)}"
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=secrets.token_hex(8), namespace="tests"),
            hostname=name,
            log_directory=str(self.logs / name),
            labels={"app": name},
        )
        config.linux.security_context.namespace_options.pid = cri.CONTAINER
        for key, value in linux.items():
            setattr(config.linux.security_context.namespace_options, key, value)
        os.makedirs(config.log_directory, exist_ok=True)
        return config

    def need_handler(self, name: str, *, user_namespaces: bool = False) -> None:
        """Skip the test, saying why, if the daemon has found that the OCI runtime does not work here, or not so."""

        def look() -> tuple[dict[str, cri.RuntimeHandlerFeatures], dict[str, str]]:
            reply = self.runtime.Status(cri.StatusRequest(verbose=True))
            known = {handler.name: handler.features for handler in reply.runtime_handlers}
            return known, json.loads(reply.info["config"])["unusableHandlers"]

        wait_until(lambda: "ran for" not in look()[1].get(name, ""))  # too slow at the start: it is tried again
        features, problems = look()
        if name not in features:
            pytest.skip(f"no {name} here: {problems.get(name, 'it is not installed')}")
        if user_namespaces and not features[name].user_namespaces:
            pytest.skip(f"{name} has no user namespaces with this kernel")

    def pod(self, config: cri.PodSandboxConfig | None = None, handler: str = "", **linux: Any) -> Pod:
        """Run a sandbox."""
        config = config or self.pod_config(**linux)
        reply = self.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config, runtime_handler=handler))
        return Pod(self, reply.pod_sandbox_id, config)


def some_limit(number: int) -> dict[str, Any]:
    """Resources with one limit that this host can set, whatever it is."""
    if pure_v2.missing_controllers("cpu"):
        return {"unified": {"hugetlb.2MB.max": str(number << 21)}}
    return {"cpu_shares": number}
