"""Plays the kubelet's part for install_test.sh, with the libraries of the installed package and nothing else.

/usr/lib/crisp/bin/python3 install_pods.py driver                      the cgroup driver that crisp names
... run PARENT SCRIPT      a pod whose cgroup parent is PARENT, with one container; "POD CONTAINER PID"
... exec CONTAINER SCRIPT  its output; the exit code is the script's
... stop CONTAINER         stopped within 5 s; its exit code
... state CONTAINER        its state
... remove POD
"""

from __future__ import annotations

import glob
import json
import os
import sys

[ROOMS] = glob.glob("/usr/lib/crisp/lib/python3*/site-packages/crisp")
sys.path.insert(0, ROOMS)

from proto import api_pb2 as cri  # noqa: E402
from runtime.cli.main import DEFAULT_SOCKET  # noqa: E402
from runtime.client import Client  # noqa: E402

IMAGE = "localhost/busybox:test"


def main() -> int:
    """One verb."""
    verb, *arguments = sys.argv[1:]
    with Client(str(DEFAULT_SOCKET)) as client:
        runtime = client.runtime
        match verb, *arguments:
            case "driver", *_:
                configuration = runtime.RuntimeConfig(cri.RuntimeConfigRequest()).linux
                print(cri.CgroupDriver.Name(configuration.cgroup_driver))
            case "run", parent, script:
                print(*run(runtime, parent, script))
            case "exec", container, script:
                command = ["/bin/sh", "-c", script]
                reply = runtime.ExecSync(cri.ExecSyncRequest(container_id=container, cmd=command, timeout=60))
                sys.stdout.write(reply.stdout.decode())
                return int(reply.exit_code)
            case "update", container, limit, cpu:
                limits = cri.LinuxContainerResources(
                    memory_limit_in_bytes=int(limit), cpu_quota=int(cpu) * 100, cpu_period=100_000, cpuset_cpus="0"
                )
                runtime.UpdateContainerResources(cri.UpdateContainerResourcesRequest(container_id=container, linux=limits))
            case "stop", container:
                runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=5))
                print(runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container)).status.exit_code)
            case "state", container:
                status = runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container)).status
                print(cri.ContainerState.Name(status.state))
            case "remove", pod:
                runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod))
            case _:
                raise SystemExit(__doc__)
    return 0


def run(runtime: object, parent: str, script: str) -> tuple[str, str, int]:
    """Pod, container and the pid of its process, once it runs."""
    name = f"pod{os.getpid()}"
    logs = f"/var/log/pods/{name}"
    os.makedirs(logs, exist_ok=True)
    sandbox = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=name, namespace="default"), hostname=name, log_directory=logs
    )
    sandbox.linux.cgroup_parent = parent
    options = sandbox.linux.security_context.namespace_options
    options.pid = cri.CONTAINER
    pod = runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=sandbox)).pod_sandbox_id  # type: ignore[attr-defined]
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="main"), image=cri.ImageSpec(image=IMAGE), log_path="main.log"
    )
    config.command.extend(["/bin/sh", "-c", script])
    config.linux.security_context.namespace_options.CopyFrom(options)
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    config.linux.resources.cpu_quota, config.linux.resources.cpu_period = 50_000, 100_000
    config.linux.resources.cpuset_cpus = "0-1"
    request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=config, sandbox_config=sandbox)
    container = runtime.CreateContainer(request).container_id  # type: ignore[attr-defined]
    runtime.StartContainer(cri.StartContainerRequest(container_id=container))  # type: ignore[attr-defined]
    status = runtime.ContainerStatus(  # type: ignore[attr-defined]
        cri.ContainerStatusRequest(container_id=container, verbose=True)
    )
    return pod, container, json.loads(status.info["info"])["pid"]


if __name__ == "__main__":
    sys.exit(main())
