"""manifests/testcluster: nodes as network namespaces, with pods that reach each other. The tests play the kubelet's part."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernel import mounts
from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from tests.harness.client import Client
from tests.harness.daemon import ROOT
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until
from tests.packaging.host_state import host_state

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("own_network")]

PROGRAM = ROOT / "manifests" / "testcluster" / "testcluster.py"


class Cluster:
    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name

    def call(self, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROGRAM), "--directory", str(self.directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds)

    def up(self, nodes: int) -> None:
        crisp = shlex.join([sys.executable, str(ROOT / "crisp.py")])
        result = self.call("up", "--nodes", str(nodes), "--name", self.name, "--crisp", crisp)
        assert result.returncode == 0, result.stderr

    def client(self, node: int) -> Client:
        return Client(str(self.directory / str(node) / "crisp.sock"))


@pytest.fixture
def cluster(own_network: None) -> Iterator[Cluster]:
    name = f"t{os.getpid()}"
    cluster = Cluster(Path(f"/var/tmp/testcluster-{name}"), name)
    yield cluster
    if cluster.directory.exists():
        result = cluster.call("down")
        assert result.returncode == 0, result.stderr


KUBERNETES = Path(os.environ.get("CRISP_KUBERNETES", "/nonexistent"))
NEEDED = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl")
LACKING = [name for name in NEEDED if not (KUBERNETES / name).exists()]

MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {matchLabels: {app: web}}
      containers:
      - name: web
        image: localhost/busybox:test
        imagePullPolicy: Never
        command: [/bin/sh, -c, "mkdir -p /www; hostname > /www/x; exec busybox httpd -f -p 8080 -h /www"]
        readinessProbe: {httpGet: {path: /x, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"""


def kubelet(client: Client, directory: Path, rootfs: Path) -> Kubelet:
    """Of one node; its containers are made of a plain directory."""
    image = client.admin.AddRootfs(admin.AddRootfsRequest(name="localhost/busybox:test", directory=str(rootfs))).image_id
    return Kubelet(cast("Any", SimpleNamespace(client=client, directory=directory)), image)


def test_pods_of_two_nodes_reach_each_other(cluster: Cluster, rootfs: Path) -> None:
    before = host_state(cluster.directory)
    cluster.up(2)
    assert cluster.call("status").returncode == 0
    assert "already" in cluster.call("up").stderr
    with cluster.client(1) as first, cluster.client(2) as second:
        server = kubelet(first, cluster.directory / "1", rootfs).pod()
        server.run("/bin/sh", "-c", "mkdir -p /www; echo hello > /www/x; exec busybox httpd -f -p 8080 -h /www")
        status = first.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=server.id)).status
        addresses = [status.network.ip, *(extra.ip for extra in status.network.additional_ips)]
        assert [address.startswith(start) for address, start in zip(addresses, ("10.244.1.", "fd00:"), strict=True)]
        asker = kubelet(second, cluster.directory / "2", rootfs).pod().run("/bin/sleep", "1000")
        for address in addresses:
            host = f"[{address}]" if ":" in address else address
            wait_until(
                lambda host=host: asker.exec("/bin/busybox", "wget", "-qO-", f"http://{host}:8080/x").stdout == b"hello\n"
            )
    restarted = cluster.call("restart", "1")
    assert restarted.returncode == 0, restarted.stderr
    with cluster.client(1) as first:
        states = [c.state for c in first.runtime.ListContainers(cri.ListContainersRequest()).containers]
        assert states == [cri.CONTAINER_RUNNING]
    result = cluster.call("down")
    assert result.returncode == 0, result.stderr
    assert not cluster.directory.exists()
    assert host_state(cluster.directory) == before
    assert [name for name in os.listdir("/run/netns") if name.startswith(cluster.name)] == []


def test_down_unmounts_and_never_deletes_what_is_mounted(cluster: Cluster, tmp_path: Path) -> None:
    cluster.up(1)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "precious").write_text("keep")
    volumes = cluster.directory / "1" / "kubelet" / "pods" / "a volume"
    volumes.mkdir(parents=True)
    mounts.tmpfs(str(volumes), 1 << 20)
    (volumes / "bound").mkdir()
    mounts.bind(str(theirs), str(volumes / "bound"))
    with open(volumes / "held", "w"):
        refused = cluster.call("down")
        assert refused.returncode == 1
        assert "cannot be unmounted" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert (volumes / "held").exists()
    result = cluster.call("down")
    assert result.returncode == 0, result.stderr
    assert not cluster.directory.exists()
    assert (theirs / "precious").read_text() == "keep"


def test_a_directory_with_other_files_is_not_taken(cluster: Cluster, tmp_path: Path) -> None:
    """`down` would remove them."""
    (tmp_path / "thesis").write_text("mine")
    result = Cluster(tmp_path, cluster.name).call("up", "--nodes", "1", "--name", cluster.name)
    assert result.returncode != 0
    assert f"{tmp_path} is not empty (thesis)" in result.stderr
    assert os.listdir(tmp_path) == ["thesis"]


def test_a_namespace_of_somebody_else_is_not_taken(cluster: Cluster) -> None:
    name = f"{cluster.name}-2"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        refused = cluster.call("up", "--nodes", "2", "--name", cluster.name)
        assert "not of this cluster" in refused.stderr
        assert not cluster.directory.exists()
        assert Path(f"/run/netns/{name}").exists()
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def eventually(condition: Callable[[], bool]) -> None:
    """Look until it is so: a control plane takes its time, and more on a busy machine."""
    wait_until(condition, seconds=400, pause=0.5)


def ask_kubectl(cluster: Cluster, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    fabric = f"/run/netns/{cluster.name}-fabric"
    command = ["nsenter", f"--net={fabric}", "--", str(KUBERNETES / "kubectl")]
    options = ["--kubeconfig", str(cluster.directory / "admin.kubeconfig")]
    return subprocess.run([*command, *options, *arguments], input=stdin, capture_output=True, text=True, timeout=400)


def kubectl(cluster: Cluster, *arguments: str) -> str:
    done = ask_kubectl(cluster, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(1500)
@pytest.mark.skipif(bool(LACKING), reason=f"set CRISP_KUBERNETES to a directory with {', '.join(LACKING)}")
def test_a_real_control_plane_runs_deployments_across_nodes(cluster: Cluster, rootfs: Path) -> None:
    """With real kubelets and kube-proxy in nftables mode: from pod to pod and to a Service, in a node and over nodes."""
    before = host_state(cluster.directory)
    crisp = shlex.join([sys.executable, str(ROOT / "crisp.py")])
    programs = ("--kubelet", str(KUBERNETES / "kubelet"), "--control-plane", str(KUBERNETES))
    started = cluster.call("up", "--nodes", "2", "--name", cluster.name, "--crisp", crisp, *programs, seconds=900)
    assert started.returncode == 0, started.stderr
    for node in (1, 2):
        with cluster.client(node) as client:
            client.admin.AddRootfs(admin.AddRootfsRequest(name="localhost/busybox:test", directory=str(rootfs)))
    eventually(lambda: kubectl(cluster, "get", "nodes", "--no-headers").split().count("Ready") == 2)
    eventually(lambda: "default" in kubectl(cluster, "get", "serviceaccounts", "-o", "name"))
    # Without a look at the schemas: the API server has them a while after it says that it is ready, or never if built oddly.
    eventually(lambda: ask_kubectl(cluster, "apply", "--validate=false", "-f", "-", stdin=MANIFEST).returncode == 0)
    kubectl(cluster, "rollout", "status", "deployment/web", "--timeout=300s")
    pods = json.loads(kubectl(cluster, "get", "pods", "-l", "app=web", "-o", "json"))["items"]
    assert sorted(pod["spec"]["nodeName"] for pod in pods) == [f"{cluster.name}-{n}" for n in (1, 1, 2, 2)]
    service = kubectl(cluster, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")

    def asked(pod: str, address: str) -> str:
        return kubectl(cluster, "exec", pod, "--", "/bin/busybox", "wget", "-qO-", f"http://{address}/x").strip()

    for pod in (pods[0], next(pod for pod in pods if pod["spec"]["nodeName"] != pods[0]["spec"]["nodeName"])):
        name = pod["metadata"]["name"]
        for other in pods:
            assert asked(name, f"{other['status']['podIP']}:8080") == other["metadata"]["name"]
        reached: set[str] = set()
        eventually(lambda name=name, reached=reached: reached.add(asked(name, service)) or len(reached) > 2)
    assert cluster.call("status").returncode == 0
    result = cluster.call("down")
    assert result.returncode == 0, result.stderr
    assert not cluster.directory.exists()
    assert host_state(cluster.directory) == before
    assert [name for name in os.listdir("/run/netns") if name.startswith(cluster.name)] == []


def test_a_control_plane_without_its_programs_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "etcd").touch()
    refused = cluster.call("up", "--kubelet", "kubelet", "--control-plane", str(tmp_path))
    assert "lacks kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy" in refused.stderr
    assert not cluster.directory.exists()
