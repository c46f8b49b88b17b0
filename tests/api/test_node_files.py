"""What the node's administrator adds to containers: CDI, hooks, base specifications, ulimits, annotations, classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto import api_pb2 as cri
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Container, Kubelet

pytestmark = pytest.mark.root

CONFIG = """
[network]
bridge = "crisptnf0"
table = "crisptnf"
subnets = ["10.213.0.0/16", "fd63:7269:7371::/64"]
[containers]
cdi_spec_dirs = ["{0}/cdi"]
hooks_dirs = ["{0}/hooks"]
ulimits = ["core=0", "stack=1048576:2097152"]
device_ownership_from_security_context = true
[runtimes.bare]
path = "runc"
privileged_without_host_devices = true
[runtimes.based]
path = "runc"
base_spec = "{0}/base.json"
pod_annotations = ["io.example.*"]
container_annotations = ["org.example/*"]
"""

CDI = """
cdiVersion: 0.6.0
kind: example.com/gpu
containerEdits:
  env: [DRIVER=1]
devices:
- name: a
  containerEdits:
    env: [GPU=a]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/full, permissions: rw}]
    mounts: [{hostPath: %s/library, containerPath: /opt/library, options: [ro, bind]}]
    additionalGids: [4444]
- name: broken
  containerEdits: {deviceNodes: [{path: /dev/not-there}]}
"""


@pytest.fixture(scope="module")
def equipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose administrator has put files into directories."""
    files = tmp_path_factory.mktemp("files")
    daemon = Daemon(CONFIG.format(files))
    for name in ("cdi", "hooks", "library"):
        (files / name).mkdir()
    (files / "cdi" / "gpu.yaml").write_text(CDI % files)
    (files / "library" / "x.so").write_text("library\n")
    script = files / "hook.sh"
    script.write_text(f"#!/bin/sh\ncat > {files}/seen-$1\n")
    script.chmod(0o755)
    hook = {
        "version": "1.0.0",
        "hook": {"path": str(script), "args": ["hook.sh", "created"], "timeout": 10},
        "when": {"annotations": {"^io\\.example\\.hook$": "^yes$"}},
        "stages": ["createRuntime"],
    }
    (files / "hooks" / "10.json").write_text(json.dumps(hook))
    base = {
        "ociVersion": "1.0.2",
        "process": {"env": ["FROM_BASE=1"], "rlimits": [{"type": "RLIMIT_NPROC", "soft": 77, "hard": 77}]},
        "mounts": [{"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}],
    }
    (files / "base.json").write_text(json.dumps(base))
    daemon.start()
    yield daemon
    daemon.destroy()


@pytest.fixture
def kubelet(equipped: Daemon, rootfs: Path) -> Iterator[Kubelet]:
    yield Kubelet.on(equipped, rootfs)
    equipped.remove_all()
    assert equipped.leftovers() == []


@pytest.fixture
def files(equipped: Daemon) -> Path:
    """The administrator's directory."""
    [line] = [line for line in equipped.config.read_text().splitlines() if line.startswith("hooks_dirs")]
    return Path(json.loads(line.partition("=")[2])[0]).parent


def check_device(container: Container) -> None:
    assert container.sh("echo $GPU $DRIVER") == "a 1\n"
    assert container.sh("stat -c %t:%T /dev/gpu0") == "1:7\n"
    assert "No space" in container.exec("/bin/sh", "-c", "echo x > /dev/gpu0").stderr.decode()
    assert container.sh("cat /opt/library/x.so") == "library\n"
    assert "4444" in container.sh("id -G").split()
    assert 4444 in container.status().user.linux.supplemental_groups


def test_cdi_device_by_field(kubelet: Kubelet) -> None:
    wanted = cri.ContainerConfig(CDI_devices=[cri.CDIDevice(name="example.com/gpu=a")])
    check_device(kubelet.pod().run("/bin/sleep", "100", config=wanted))


def test_cdi_device_by_annotation(kubelet: Kubelet) -> None:
    wanted = cri.ContainerConfig(annotations={"cdi.k8s.io/plugin": "example.com/gpu=a"})
    check_device(kubelet.pod().run("/bin/sleep", "100", config=wanted))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("example.com/gpu=z", "example.com/gpu=z is not defined in"),
        ("nonsense", "not VENDOR/CLASS=NAME"),
        ("example.com/gpu=broken", "/dev/not-there"),
    ],
)
def test_cdi_errors(kubelet: Kubelet, name: str, message: str) -> None:
    wanted = cri.ContainerConfig(CDI_devices=[cri.CDIDevice(name=name)])
    with pytest.raises(grpc.RpcError, match=message):
        kubelet.pod().create("/bin/true", config=wanted)


def test_hooks_run_where_their_conditions_hold(kubelet: Kubelet, files: Path) -> None:
    seen = files / "seen-created"
    kubelet.pod().create("/bin/true")
    assert not seen.exists()
    config = kubelet.pod_config()
    config.annotations["io.example.hook"] = "yes"
    container = kubelet.pod(config).create("/bin/true")
    assert json.loads(seen.read_text())["id"] == container.id


def test_a_broken_hook_file_fails_creation_and_says_which(kubelet: Kubelet, files: Path) -> None:
    broken = files / "hooks" / "20.json"
    broken.write_text("{")
    try:
        with pytest.raises(grpc.RpcError, match=r"20\.json is not JSON"):
            kubelet.pod().create("/bin/true")
    finally:
        broken.unlink()


def test_base_specification_and_annotations_of_a_handler(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.annotations.update({"io.example.a": "1", "other": "2"})
    wanted = cri.ContainerConfig(annotations={"org.example/b": "3", "io.example.c": "4"})
    container = kubelet.pod(config, handler="based").run("/bin/sleep", "100", config=wanted)
    assert container.sh("echo $FROM_BASE; df -k /scratch | tail -1").split()[:3] == ["1", "tmpfs", "1024"]
    assert container.sh("grep processes /proc/self/limits").split()[2:4] == ["77", "77"]
    reply = container.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container.id, verbose=True))
    annotations = json.loads(reply.info["info"])["runtimeSpec"]["annotations"]
    assert annotations["io.example.a"] == "1"
    assert annotations["org.example/b"] == "3"
    assert not {"other", "io.example.c"} & set(annotations)
    plain = kubelet.pod().run("/bin/sleep", "100")
    assert plain.exec("/bin/ls", "/scratch").exit_code != 0


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="no /dev/net/tun")
def test_devices_belong_to_the_containers_user(kubelet: Kubelet) -> None:
    wanted = cri.ContainerConfig(devices=[cri.Device(host_path="/dev/net/tun", permissions="rw")])
    wanted.linux.security_context.run_as_user.value = 1000
    wanted.linux.security_context.run_as_group.value = 2000
    assert kubelet.pod().shell("stat -c %u:%g /dev/net/tun", wanted).output() == "1000:2000\n"


def test_privileged_without_host_devices(kubelet: Kubelet) -> None:
    """It may use every device, but has nodes for none of the host's."""
    config = kubelet.pod_config()
    config.linux.security_context.privileged = True
    wanted = cri.ContainerConfig()
    wanted.linux.security_context.privileged = True
    all_of_them = kubelet.pod(config).shell("ls /dev", wanted).output().split()
    config = kubelet.pod_config()
    config.linux.security_context.privileged = True
    bare = kubelet.pod(config, handler="bare").run("/bin/sleep", "100", config=wanted)
    assert "kmsg" in all_of_them
    assert "kmsg" not in bare.sh("ls /dev").split()
    bare.sh("mknod /made c 1 11 && : < /made")


def test_ulimits(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.annotations["io.crisp.ulimits/limited"] = "nofile=64:128,fsize=4096,core=5"
    pod = kubelet.pod(config)
    wanted = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="limited"))
    show = "grep -E 'core|stack|open files|file size' /proc/self/limits"
    assert [line.split()[-3:-1] for line in pod.shell(show, wanted).output().splitlines()] == [
        ["4096", "4096"],
        ["1048576", "2097152"],
        ["5", "5"],
        ["64", "128"],
    ]
    assert pod.shell("ulimit -c; ulimit -n").output().split() == ["0", "1024"]
    config = kubelet.pod_config()
    config.annotations["io.crisp.ulimits/bad"] = "rtprio=99"
    with pytest.raises(grpc.RpcError, match="rtprio=99"):
        kubelet.pod(config).create("/bin/true", config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name="bad")))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ("rdt.resources.beta.kubernetes.io/pod", "RDT class 'gold'"),
        ("blockio.resources.beta.kubernetes.io/pod", "block I/O class 'gold'"),
    ],
)
def test_classes_that_the_host_lacks(kubelet: Kubelet, annotation: str, message: str) -> None:
    config = kubelet.pod_config()
    config.annotations[annotation] = "gold"
    with pytest.raises(grpc.RpcError, match=message) as caught:
        kubelet.pod(config).create("/bin/true")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
