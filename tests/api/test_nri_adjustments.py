"""What NRI plugins adjust is seen in the running container, by whichever cgroups the host has."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from kernel import cgroups
from proto import api_pb2 as cri
from proto import nri_pb2 as nri
from tests.harness.kubelet import Container, Kubelet
from tests.harness.nri_plugin import NriPlugin

pytestmark = pytest.mark.root

MIB = 1 << 20

Adjusting = Callable[[dict[str, Any]], None]


@pytest.fixture
def adjust(kubelet: Kubelet) -> Iterator[Adjusting]:
    """Have a plugin answer each CreateContainer with the adjustment that is set last."""
    answer = nri.CreateContainerResponse()

    def wanted(document: dict[str, Any]) -> None:
        answer.Clear()
        json_format.ParseDict({"adjust": document}, answer)

    with NriPlugin(kubelet.daemon.nri_socket, on={"CreateContainer": lambda _: answer}):
        yield wanted


def value(number: Any) -> dict[str, Any]:
    return {"value": number}


def linux(**fields: Any) -> dict[str, Any]:
    return {"linux": fields}


def limits(**fields: Any) -> dict[str, Any]:
    return {"linux": {"resources": fields}}


def info(container: Container) -> dict[str, Any]:
    reply = container.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container.id, verbose=True))
    found: dict[str, Any] = json.loads(reply.info["info"])
    return found


def group_of(container: Container) -> cgroups.Group:
    hierarchies = cgroups.detect()
    return hierarchies.group(cgroups.of_process(info(container)["pid"], hierarchies))


def refusal(kubelet: Kubelet, **asked: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        kubelet.pod().create("/bin/true", **asked)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    listed = kubelet.runtime.ListContainers(cri.ListContainersRequest()).containers
    assert [*listed] == [], "nothing is left of it"
    details: str = caught.value.details()
    return details


def test_environment_and_arguments(kubelet: Kubelet, adjust: Adjusting) -> None:
    adjust(
        {
            "env": [{"key": "ADDED", "value": "a=b"}, {"key": "CHANGED", "value": "new"}, {"key": "-GONE"}],
            "args": ["/bin/sh", "-c", "env"],
        }
    )
    asked = cri.ContainerConfig()
    for key in ("CHANGED", "GONE", "KEPT"):
        asked.envs.add(key=key, value=b"old")
    container = kubelet.pod().run("/bin/false", config=asked)
    assert container.wait().exit_code == 0
    found = dict(line.partition("=")[::2] for line in container.output().splitlines())
    assert (found["ADDED"], found["CHANGED"], found["KEPT"]) == ("a=b", "new", "old")
    assert "GONE" not in found


def test_mounts(kubelet: Kubelet, adjust: Adjusting, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host")
    adjust(
        {
            "mounts": [
                {"destination": "/added", "type": "bind", "source": str(tmp_path), "options": ["rbind", "ro", "rprivate"]},
                {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=1777"]},
                {"destination": "-/etc/resolv.conf"},
            ]
        }
    )
    container = kubelet.pod().run("/bin/sleep", "1000")
    assert container.sh("cat /added/file") == "of the host"
    assert container.exec("/bin/sh", "-c", "touch /added/new").exit_code != 0
    mounted = {line.split()[1]: line.split() for line in container.sh("cat /proc/mounts").splitlines()}
    assert mounted["/scratch"][2] == "tmpfs"
    assert "/etc/resolv.conf" not in mounted
    assert "/etc/hosts" in mounted


def test_limits_of_processes(kubelet: Kubelet, adjust: Adjusting) -> None:
    adjust(
        {
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": "321", "hard": "654"},
                {"type": "RLIMIT_CORE", "soft": "4096", "hard": "8192"},
            ]
        }
    )
    container = kubelet.pod().run("/bin/sleep", "1000")
    found = {
        line[:26].strip(): line[26:].split()
        for line in Path(f"/proc/{info(container)['pid']}/limits").read_text().splitlines()
    }
    assert found["Max open files"][:2] == ["321", "654"]
    assert found["Max core file size"][:2] == ["4096", "8192"]


def test_oom_score(kubelet: Kubelet, adjust: Adjusting) -> None:
    adjust(linux(oom_score_adj=value("777")))
    container = kubelet.pod().run("/bin/sleep", "1000")
    assert container.sh("cat /proc/1/oom_score_adj").strip() == "777"
    assert container.status().resources.linux.oom_score_adj == 777


def test_a_device(kubelet: Kubelet, adjust: Adjusting) -> None:
    """Node and rule: of what the host has of it nothing else can be opened."""
    adjust(
        linux(
            devices=[
                {"path": "/dev/added", "type": "c", "major": "1", "minor": "11", "file_mode": value(0o640), "gid": value(7)},
                {"path": "/dev/fifo", "type": "p", "file_mode": value(0o600)},
            ]
        )
    )
    container = kubelet.pod().run("/bin/sleep", "1000")
    assert container.sh("stat -c '%F %t:%T %a %u:%g' /dev/added").strip() == "character special file 1:b 640 0:7"
    assert container.sh("stat -c '%F %a' /dev/fifo").strip() == "fifo 600"
    assert container.exec("/bin/sh", "-c", "exec 3>/dev/added").exit_code == 0


def test_device_rules(kubelet: Kubelet, adjust: Adjusting) -> None:
    opened = "mknod /tmp/kmsg c 1 11 && exec 3>/tmp/kmsg"
    assert kubelet.pod().shell(opened).wait().exit_code != 0
    adjust(limits(devices=[{"allow": True, "type": "c", "major": value("1"), "minor": value("11"), "access": "rwm"}]))
    assert kubelet.pod().shell(opened).wait().exit_code == 0


@pytest.mark.controllers("memory", "cpu", "cpuset", "pids")
def test_resources(kubelet: Kubelet, adjust: Adjusting) -> None:
    """The kernel has the plugin's; ContainerStatus shows them, and a later update leaves those that it does not name."""
    adjust(
        limits(
            memory={"limit": value(str(64 * MIB)), "reservation": value(str(32 * MIB))},
            cpu={"shares": value("512"), "quota": value("30000"), "period": value("50000"), "cpus": "0", "mems": "0"},
            pids={"limit": "99"},
        )
    )
    asked = cri.ContainerConfig()
    asked.linux.resources.memory_limit_in_bytes = 16 * MIB
    container = kubelet.pod().run("/bin/sleep", "1000", config=asked)
    group = group_of(container)

    def read(controller: str, v1: str, v2: str) -> str:
        name = v2 if cgroups.detect().mode is cgroups.Mode.V2 else v1
        return Path(group.directory(controller), name).read_text().strip()

    assert read("memory", "memory.limit_in_bytes", "memory.max") == str(64 * MIB)
    assert read("memory", "memory.soft_limit_in_bytes", "memory.low") == str(32 * MIB)
    assert read("cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "30000"
    assert read("cpuset", "cpuset.cpus", "cpuset.cpus") == "0"
    assert read("cpuset", "cpuset.mems", "cpuset.mems") == "0"
    assert read("pids", "pids.max", "pids.max") == "99"
    shown = container.status().resources.linux
    assert (shown.memory_limit_in_bytes, shown.cpu_shares, shown.cpu_quota, shown.cpu_period) == (
        64 * MIB,
        512,
        30000,
        50000,
    )
    assert (shown.cpuset_cpus, shown.cpuset_mems) == ("0", "0")

    container.update(cpu_quota=20000)
    assert read("cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "20000"
    assert read("memory", "memory.limit_in_bytes", "memory.max") == str(64 * MIB)
    assert container.status().resources.linux.memory_limit_in_bytes == 64 * MIB


@pytest.mark.controllers("memory")
def test_control_files(kubelet: Kubelet, adjust: Adjusting) -> None:
    adjust(limits(unified={"memory.high": str(48 * MIB)}))
    container = kubelet.pod().run("/bin/sleep", "1000")
    assert container.status().resources.linux.unified["memory.high"] == str(48 * MIB)
    if cgroups.detect().mode is cgroups.Mode.V2:
        assert Path(group_of(container).directory("memory"), "memory.high").read_text().strip() == str(48 * MIB)


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_io_priority_and_scheduler_whatever_the_runtime_knows(kubelet: Kubelet, adjust: Adjusting, handler: str) -> None:
    kubelet.need_handler(handler)
    adjust(
        linux(
            io_priority={"class": "IOPRIO_CLASS_BE", "priority": 6},
            scheduler={"policy": "SCHED_BATCH", "nice": 5},
        )
    )
    container = kubelet.pod(handler=handler).run("/bin/sh", "-c", "sleep 1000 & wait")
    pid = info(container)["pid"]
    children = [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for process in (pid, *children):
        assert os.sched_getscheduler(process) == os.SCHED_BATCH
        assert os.getpriority(os.PRIO_PROCESS, process) == 5
        assert subprocess.check_output(["ionice", "-p", str(process)], text=True).strip() == "best-effort: prio 6"


def test_a_scheduler_that_the_kernel_does_not_give_fails_the_create(kubelet: Kubelet, adjust: Adjusting) -> None:
    """More time than there is in a period of all processors."""
    hour = str(3_600_000_000_000)
    adjust(linux(scheduler={"policy": "SCHED_DEADLINE", "runtime": hour, "deadline": hour, "period": hour}))
    assert "sched_setattr" in refusal(kubelet)


def test_sysctls_of_the_pods_namespaces(kubelet: Kubelet, adjust: Adjusting) -> None:
    adjust(linux(sysctl={"net.ipv4.ip_unprivileged_port_start": "321"}))
    container = kubelet.pod().run("/bin/sleep", "1000")
    assert container.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").strip() == "321"


def test_namespaces(kubelet: Kubelet, adjust: Adjusting) -> None:
    pod = kubelet.pod()
    beside = pod.run("/bin/sleep", "1000")
    adjust(linux(namespaces=[{"type": "uts"}, {"type": "-pid"}]))
    container = pod.run("/bin/sleep", "1000")

    def namespace(process: int | str, kind: str) -> str:
        return os.readlink(f"/proc/{process}/ns/{kind}")

    pid, other = info(container)["pid"], info(beside)["pid"]
    assert namespace(pid, "pid") == namespace("self", "pid")
    assert namespace(pid, "uts") not in (namespace(other, "uts"), namespace("self", "uts"))
    assert namespace(pid, "net") == namespace(other, "net")


def test_hooks(kubelet: Kubelet, adjust: Adjusting, tmp_path: Path) -> None:
    def hook(stage: str) -> list[dict[str, Any]]:
        return [{"path": "/bin/sh", "args": ["sh", "-c", f"echo $WHAT >> {tmp_path}/{stage}"], "env": [f"WHAT={stage}"]}]

    adjust({"hooks": {stage: hook(stage) for stage in ("prestart", "create_runtime", "poststart", "poststop")}})
    container = kubelet.pod().run("/bin/sleep", "1000")
    seen = {stage: (tmp_path / stage).read_text() for stage in ("prestart", "create_runtime", "poststart")}
    assert seen == {stage: f"{stage}\n" for stage in seen}
    assert not (tmp_path / "poststop").exists()
    container.stop()
    container.remove()
    assert (tmp_path / "poststop").read_text() == "poststop\n"


def test_seccomp_policy(kubelet: Kubelet, adjust: Adjusting) -> None:
    denied = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errno_ret": value(28)}
    adjust(linux(seccomp_policy={"default_action": "SCMP_ACT_ALLOW", "syscalls": [denied]}))
    container = kubelet.pod().shell("mkdir /x 2>&1; grep Seccomp: /proc/self/status")
    assert "No space left" in container.output()
    assert "Seccomp:\t2" in container.output()


def test_annotations(kubelet: Kubelet, adjust: Adjusting) -> None:
    adjust({"annotations": {"example.com/by": "plugin", "-io.kubernetes.cri.sandbox-name": ""}})
    container = kubelet.pod().run("/bin/sleep", "1000")
    annotations = info(container)["runtimeSpec"]["annotations"]
    assert annotations["example.com/by"] == "plugin"
    assert "io.kubernetes.cri.sandbox-name" not in annotations
    assert "io.kubernetes.cri.sandbox-id" in annotations
    assert dict(container.status().annotations) == {}, "those are the client's"


def test_another_control_group(kubelet: Kubelet, adjust: Adjusting) -> None:
    """Its processes end there, and it goes with the container."""
    systemd = kubelet.runtime.RuntimeConfig(cri.RuntimeConfigRequest()).linux.cgroup_driver == cri.SYSTEMD
    parent = kubelet.daemon.cgroup_parent.strip("/")
    name = f"{parent}-adjusted"
    adjust(linux(cgroups_path=f"system.slice:crisp:{name}" if systemd else f"/{parent}/{name}"))
    expected = f"system.slice/crisp-{name}.scope" if systemd else f"{parent}/{name}"
    pod = kubelet.pod()
    container = pod.run("/bin/sh", "-c", "trap '' TERM; sleep 1000 & wait")
    group = group_of(container)
    assert group.path == expected
    with pytest.raises(grpc.RpcError, match="is a group that is there"):
        pod.create("/bin/true")
    container.stop()
    container.remove()
    assert not group.exists()


def test_what_cannot_be_given_leaves_nothing(kubelet: Kubelet, adjust: Adjusting) -> None:
    adjust({"rlimits": [{"type": "RLIMIT_NONSENSE"}]})
    assert "NRI plugins" in refusal(kubelet)
    adjust({})
    assert kubelet.pod().shell("exit 0").wait().exit_code == 0


def test_a_runtime_that_does_not_know_network_devices(kubelet: Kubelet, adjust: Adjusting) -> None:
    adjust(linux(net_devices={"nothing0": {"name": "net1"}}))
    message = refusal(kubelet)
    assert "netDevices" in message or "nothing0" in message
