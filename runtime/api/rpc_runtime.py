"""RuntimeService: one method per RPC, named as api.proto names it. Each only unwraps the request and wraps the reply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proto import api_pb2 as cri
from proto.errors import failed_precondition, invalid
from proto.version import VERSION
from runtime import listing
from runtime.api import node_status
from runtime.api.rpc_observation import ObservationRpcs
from runtime.lifecycle import SandboxState
from runtime.listing import Encoded
from runtime.pods import (
    container_create,
    container_exec,
    container_remove,
    container_start,
    container_status,
    container_stop,
    sandbox_run,
    sandbox_status,
    sandbox_stop,
)

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.streaming.server import StreamingServer

API_VERSION = "v1"


class RuntimeService(ObservationRpcs):
    """Pods and containers."""

    def __init__(self, node: Node, streaming: StreamingServer) -> None:
        super().__init__(node)
        self._streaming = streaming

    async def Version(self, request: cri.VersionRequest) -> cri.VersionResponse:
        """Name and versions; the kubelet wants all four fields."""
        return cri.VersionResponse(
            version=request.version or "0.1.0",
            runtime_name="crisp",
            runtime_version=VERSION,
            runtime_api_version=API_VERSION,
        )

    async def Status(self, request: cri.StatusRequest) -> cri.StatusResponse:
        """Conditions, handlers, features."""
        reply = await node_status.status(self._node, verbose=request.verbose)
        if request.verbose and self._streaming.certificate:
            reply.info["streamingCertificate"] = self._streaming.certificate
        return reply

    async def RuntimeConfig(self, request: cri.RuntimeConfigRequest) -> cri.RuntimeConfigResponse:
        """The cgroup driver."""
        driver = cri.SYSTEMD if self._node.host.systemd_cgroups else cri.CGROUPFS
        return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def UpdateRuntimeConfig(self, request: cri.UpdateRuntimeConfigRequest) -> cri.UpdateRuntimeConfigResponse:
        """Takes the node's pod CIDR."""
        await node_status.set_pod_cidr(self._node, request.runtime_config.network_config.pod_cidr)
        return cri.UpdateRuntimeConfigResponse()

    async def RunPodSandbox(self, request: cri.RunPodSandboxRequest) -> cri.RunPodSandboxResponse:
        """Make a sandbox."""
        return cri.RunPodSandboxResponse(pod_sandbox_id=await sandbox_run.run(self._node, request))

    async def StopPodSandbox(self, request: cri.StopPodSandboxRequest) -> cri.StopPodSandboxResponse:
        """Stop a sandbox."""
        await sandbox_stop.stop(self._node, request.pod_sandbox_id)
        return cri.StopPodSandboxResponse()

    async def RemovePodSandbox(self, request: cri.RemovePodSandboxRequest) -> cri.RemovePodSandboxResponse:
        """Remove a sandbox."""
        await sandbox_stop.remove(self._node, request.pod_sandbox_id)
        return cri.RemovePodSandboxResponse()

    async def PodSandboxStatus(self, request: cri.PodSandboxStatusRequest) -> cri.PodSandboxStatusResponse:
        """One sandbox, with its containers as of the same moment."""
        sandbox = self._node.sandbox(request.pod_sandbox_id)
        info = sandbox_status.verbose(sandbox, self._node.paths, self._node.handlers) if request.verbose else {}
        return sandbox_status.response(sandbox, info)

    async def ListPodSandbox(self, request: cri.ListPodSandboxRequest) -> Encoded:
        """Sandboxes that match: a ListPodSandboxResponse."""
        found = sandbox_status.select(self._node.sandboxes.values(), request.filter)
        return Encoded(b"".join(listing.each(found, sandbox_status.entry, lambda s: s.record.id)))

    async def CreateContainer(self, request: cri.CreateContainerRequest) -> cri.CreateContainerResponse:
        """Make a container."""
        return cri.CreateContainerResponse(container_id=await container_create.create(self._node, request))

    async def StartContainer(self, request: cri.StartContainerRequest) -> cri.StartContainerResponse:
        """Run a container."""
        await container_start.start(self._node, request.container_id)
        return cri.StartContainerResponse()

    async def StopContainer(self, request: cri.StopContainerRequest) -> cri.StopContainerResponse:
        """End a container."""
        await container_stop.stop(self._node, request.container_id, request.timeout)
        return cri.StopContainerResponse()

    async def RemoveContainer(self, request: cri.RemoveContainerRequest) -> cri.RemoveContainerResponse:
        """Remove a container."""
        await container_remove.remove(self._node, request.container_id)
        return cri.RemoveContainerResponse()

    async def ListContainers(self, request: cri.ListContainersRequest) -> Encoded:
        """Containers that match: a ListContainersResponse."""
        found = container_status.select(self._node.containers.values(), request.filter)
        return Encoded(b"".join(listing.each(found, container_status.entry, lambda c: c.record.id)))

    async def ContainerStatus(self, request: cri.ContainerStatusRequest) -> cri.ContainerStatusResponse:
        """One container."""
        container = self._node.container(request.container_id)
        info = container_status.verbose(container, self._node.paths) if request.verbose else {}
        return cri.ContainerStatusResponse(status=container_status.status(container), info=info)

    async def ReopenContainerLog(self, request: cri.ReopenContainerLogRequest) -> cri.ReopenContainerLogResponse:
        """Open the log anew after its rotation."""
        _, shim = container_exec.running(self._node, request.container_id)
        await shim.reopen_log()
        return cri.ReopenContainerLogResponse()

    async def Exec(self, request: cri.ExecRequest) -> cri.ExecResponse:
        """A URL where a client can run a command."""
        if not request.cmd:
            raise invalid("Exec without a command")
        container, _ = container_exec.running(self._node, request.container_id)
        streams = {"tty": request.tty, "stdin": request.stdin, "stdout": request.stdout, "stderr": request.stderr}
        return cri.ExecResponse(url=self._streaming.exec_url(container.record.id, request.cmd, changes={}, **streams))

    async def Attach(self, request: cri.AttachRequest) -> cri.AttachResponse:
        """A URL where a client can attach."""
        container, _ = container_exec.attachable(self._node, request.container_id)
        streams = {"tty": request.tty, "stdin": request.stdin, "stdout": request.stdout, "stderr": request.stderr}
        return cri.AttachResponse(url=self._streaming.attach_url(container.record.id, **streams))

    async def PortForward(self, request: cri.PortForwardRequest) -> cri.PortForwardResponse:
        """A URL where a client can reach ports of the pod."""
        sandbox = self._node.sandbox(request.pod_sandbox_id)
        if sandbox.record.state is not SandboxState.READY:
            raise failed_precondition(f"sandbox {sandbox.record.id} is {sandbox.record.state.value}, not ready")
        return cri.PortForwardResponse(url=self._streaming.port_forward_url(sandbox.record.id, request.port))

    async def ExecSync(self, request: cri.ExecSyncRequest) -> cri.ExecSyncResponse:
        """Run a command to its end."""
        stdout, stderr, code = await container_exec.exec_sync(
            self._node, request.container_id, list(request.cmd), request.timeout
        )
        return cri.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=code)
