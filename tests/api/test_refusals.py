"""Calls that cannot be: each is refused with its code and leaves everything as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from proto import api_pb2 as cri
from tests.harness.kubelet import Kubelet

pytestmark = pytest.mark.root

INVALID, MISSING, STATE = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
)
UNKNOWN = "0" * 64


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code: grpc.StatusCode = caught.value.code()
    assert caught.value.details()
    return code


@pytest.mark.parametrize("lacking", ["name", "uid", "namespace", "all"])
def test_a_pod_that_has_no_name(kubelet: Kubelet, lacking: str) -> None:
    config = kubelet.pod_config()
    if lacking == "all":
        config.ClearField("metadata")
    else:
        setattr(config.metadata, lacking, "")
    assert code_of(lambda: kubelet.pod(config)) is INVALID
    assert not kubelet.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items


def test_images_that_are_not_named(kubelet: Kubelet) -> None:
    images = kubelet.images
    assert code_of(lambda: images.ImageStatus(cri.ImageStatusRequest())) is INVALID
    assert code_of(lambda: images.RemoveImage(cri.RemoveImageRequest())) is INVALID
    assert code_of(lambda: images.PullImage(cri.PullImageRequest())) is INVALID
    unknown = cri.ImageSpec(image="localhost/nothing:1")
    assert not images.ImageStatus(cri.ImageStatusRequest(image=unknown)).HasField("image")
    images.RemoveImage(cri.RemoveImageRequest(image=unknown))


CONTAINER_CALLS: dict[str, Any] = {
    "ContainerStatus": cri.ContainerStatusRequest,
    "StartContainer": cri.StartContainerRequest,
    "UpdateContainerResources": cri.UpdateContainerResourcesRequest,
    "ReopenContainerLog": cri.ReopenContainerLogRequest,
    "ContainerStats": cri.ContainerStatsRequest,
}


@pytest.mark.parametrize("name", CONTAINER_CALLS)
def test_containers_that_nobody_knows(kubelet: Kubelet, name: str) -> None:
    assert code_of(lambda: getattr(kubelet.runtime, name)(CONTAINER_CALLS[name](container_id=UNKNOWN))) is MISSING


def test_what_is_asked_of_unknown_containers_and_pods(kubelet: Kubelet) -> None:
    runtime = kubelet.runtime
    assert code_of(lambda: runtime.ExecSync(cri.ExecSyncRequest(container_id=UNKNOWN, cmd=["true"]))) is MISSING
    assert code_of(lambda: runtime.Exec(cri.ExecRequest(container_id=UNKNOWN, cmd=["true"], stdout=True))) is MISSING
    assert code_of(lambda: runtime.Attach(cri.AttachRequest(container_id=UNKNOWN, stdout=True))) is MISSING
    assert code_of(lambda: runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=UNKNOWN))) is MISSING
    assert code_of(lambda: runtime.PodSandboxStats(cri.PodSandboxStatsRequest(pod_sandbox_id=UNKNOWN))) is MISSING
    assert code_of(lambda: runtime.PortForward(cri.PortForwardRequest(pod_sandbox_id=UNKNOWN, port=[80]))) is MISSING
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"), image=cri.ImageSpec(image=kubelet.image))
    request = cri.CreateContainerRequest(pod_sandbox_id=UNKNOWN, config=config, sandbox_config=kubelet.pod_config())
    assert code_of(lambda: runtime.CreateContainer(request)) is MISSING


def test_what_no_longer_or_not_yet_runs(kubelet: Kubelet) -> None:
    runtime, pod = kubelet.runtime, kubelet.pod()
    made = pod.create("/bin/sleep", "1000")
    ended = pod.shell("exit 3")
    for container in (made, ended):
        wanted = {"container_id": container.id}
        assert code_of(lambda w=wanted: runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(**w))) is STATE
        assert code_of(lambda w=wanted: runtime.ExecSync(cri.ExecSyncRequest(**w, cmd=["true"]))) is STATE
        assert code_of(lambda w=wanted: runtime.Exec(cri.ExecRequest(**w, cmd=["true"], stdout=True))) is STATE
    assert code_of(ended.start) is STATE
    made.start()
    assert code_of(made.start) is STATE
    assert made.status().state == cri.CONTAINER_RUNNING
    pod.stop()
    assert code_of(lambda: pod.create("/bin/true")) is STATE
    assert code_of(lambda: runtime.PortForward(cri.PortForwardRequest(pod_sandbox_id=pod.id, port=[80]))) is STATE


def test_containers_that_cannot_be_made(kubelet: Kubelet) -> None:
    pod = kubelet.pod()

    def create(**fields: Any) -> Callable[[], object]:
        config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="c"), image=cri.ImageSpec(image=kubelet.image))
        config.MergeFrom(cri.ContainerConfig(**fields))
        return lambda: pod.create("/bin/true", config=config)

    assert code_of(create(image=cri.ImageSpec(image="localhost/nothing:1"))) is MISSING
    assert code_of(create(envs=[cri.KeyValue(key="A", value=b"secret\0")])) is INVALID
    assert code_of(create(mounts=[cri.Mount(container_path="", host_path="/tmp")])) is INVALID
    assert not kubelet.runtime.ListContainers(cri.ListContainersRequest()).containers
