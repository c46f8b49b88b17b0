"""RUN: a container from start to end, in a pod that is the build's, and what it prints meanwhile."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from typing import TYPE_CHECKING, BinaryIO, Final

from proto import api_pb2 as cri
from runtime.client import CallError
from runtime.oci import asked
from runtime.oci.hidden_paths import MASKED, READONLY
from runtime.pods.objects import BUILD_LABEL

if TYPE_CHECKING:
    from runtime.build.run_mounts import Extras
    from runtime.build.session import Session
    from runtime.build.wishes import Conditions

LOOK_SECONDS: Final = 0.02
LOG_BYTES: Final = 16 << 20
"""Size of a log from which on another is begun: what was shown is not kept."""

CPU_PERIOD: Final = 100_000  # µs, as docker and the kubelet

NETWORKS: Final = {"default": cri.POD, "none": cri.CONTAINER, "host": cri.NODE}
"""RUN --network: a namespace that no network is attached to is what the CRI has for none."""

HOSTNAME: Final = "crisp-build"
"""The same for all builds: it may end up in what they make."""


class Pod:
    """A pod for the steps of one stage."""

    def __init__(self, session: Session, network: str, conditions: Conditions) -> None:
        self._session = session
        self._runtime = session.client.runtime
        self._conditions = conditions
        self._namespaces = cri.NamespaceOption(network=NETWORKS[network], pid=cri.CONTAINER, ipc=cri.POD)
        name = f"{session.id}-{secrets.token_hex(4)}"
        self._config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=name, namespace="crisp-build"),
            hostname="" if network == "host" else HOSTNAME,
            log_directory=os.path.join(session.scratch, f"logs-{name}"),
            labels={BUILD_LABEL: session.id},
        )
        self._config.linux.security_context.namespace_options.CopyFrom(self._namespaces)
        if conditions.shm_size:
            self._config.annotations[asked.SHM_SIZE] = str(conditions.shm_size)
        if conditions.hosts:
            self._config.annotations[asked.HOSTS] = "\n".join(conditions.hosts)
        os.mkdir(self._config.log_directory, 0o700)
        reply = self._runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=self._config))
        self._id = reply.pod_sandbox_id
        self._steps = 0

    @contextmanager
    def ran(
        self,
        image_id: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        extras: Extras,
        show: Callable[[bytes], None],
    ) -> Iterator[tuple[str, int]]:
        """Run a command to its end: the id of its container, which is there for the block, and its exit code."""
        self._steps += 1
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=f"step-{self._steps}"),
            image=cri.ImageSpec(image=image_id),
            command=command,
            envs=[cri.KeyValue(key=k, value=os.fsencode(v)) for k, v in {**environment, **extras.environment}.items()],
            mounts=extras.mounts,
            labels={BUILD_LABEL: self._session.id},
            log_path=f"step-{self._steps}.log",
        )
        resources = config.linux.resources
        conditions = self._conditions
        resources.memory_limit_in_bytes = conditions.memory
        if conditions.cpus:
            resources.cpu_period, resources.cpu_quota = CPU_PERIOD, max(1000, round(conditions.cpus * CPU_PERIOD))
        if conditions.ulimits:
            config.annotations[asked.PREFIX + asked.ULIMITS] = ",".join(conditions.ulimits)
        context = config.linux.security_context
        context.namespace_options.CopyFrom(self._namespaces)
        context.masked_paths.extend(MASKED)
        context.readonly_paths.extend(READONLY)
        context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
        wanted = cri.CreateContainerRequest(pod_sandbox_id=self._id, config=config, sandbox_config=self._config)
        container = self._runtime.CreateContainer(wanted).container_id
        try:
            self._runtime.StartContainer(cri.StartContainerRequest(container_id=container))
            yield container, self._follow(container, show)
        finally:
            request = cri.RemoveContainerRequest(container_id=container)
            self._runtime.RemoveContainer.behind(request)  # else it goes with the build

    def _follow(self, container: str, show: Callable[[bytes], None]) -> int:
        """Show the log until the container has ended; its exit code."""
        request = cri.ContainerStatusRequest(container_id=container)
        status = self._runtime.ContainerStatus(request).status
        log, pending = open(status.log_path, "rb"), b""  # noqa: SIM115  closed in its turn
        try:
            while True:
                ended = status.state in (cri.CONTAINER_EXITED, cri.CONTAINER_UNKNOWN)
                # A container that writes without end writes to this log until there is another.
                pending = _lines(log, pending, show, inf if ended else LOG_BYTES)
                if ended:
                    break
                if log.tell() > LOG_BYTES and self._begin_log(container, status.log_path):
                    pending = _lines(log, pending, show)  # nobody writes to it any more
                    log.close()
                    log = open(status.log_path, "rb")  # noqa: SIM115
                time.sleep(LOOK_SECONDS)
                status = self._runtime.ContainerStatus(request).status
        finally:
            log.close()
        if status.reason not in ("Completed", "Error") or status.message:
            show(f"{status.reason} {status.message}".rstrip().encode() + b"\n")
        return int(status.exit_code)

    def _begin_log(self, container: str, path: str) -> bool:
        """Let the container write another log, which takes the name; False if it has ended."""
        with suppress(FileNotFoundError):
            os.unlink(path)
        try:
            self._runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container))
        except CallError:
            return False
        return True


def _lines(log: BinaryIO, pending: bytes, show: Callable[[bytes], None], end: float = inf) -> bytes:
    """Show whole log lines (`time stream tag text`) up to a position of the log; what remains of the last one."""
    while log.tell() <= end and (chunk := log.read(65536)):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            _, _, tag, text = line.split(b" ", 3)
            show(text if tag == b"P" else text + b"\n")
    return pending
