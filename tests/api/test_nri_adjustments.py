"""What NRI plugins adjust is seen in the running container, by whichever cgroups the host has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from kernel import cgroups
from proto import admin_pb2 as admin
from proto import api_pb2 as cri
from proto import nri_pb2 as nri
from runtime.host.handler_probe import known_fields
from tests.harness.daemon import Daemon
from tests.harness.kubelet import Container, Kubelet, wait_until
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
        """It reads the state that it is given: crun 1.8 dies of SIGPIPE where a hook has gone without."""
        return [
            {
                "path": "/bin/sh",
                "args": ["sh", "-c", f"cat > /dev/null; echo $WHAT >> {tmp_path}/{stage}"],
                "env": [f"WHAT={stage}"],
            }
        ]

    adjust({"hooks": {stage: hook(stage) for stage in ("prestart", "create_runtime", "poststart", "poststop")}})
    container = kubelet.pod().run("/bin/sleep", "1000")
    seen = {stage: (tmp_path / stage).read_text() for stage in ("prestart", "create_runtime", "poststart")}
    assert seen == {stage: f"{stage}\n" for stage in seen}
    assert not (tmp_path / "poststop").exists()
    container.stop()
    container.remove()
    assert (tmp_path / "poststop").read_text() == "poststop\n"


def test_a_hook_need_not_read_the_state(kubelet: Kubelet, adjust: Adjusting, tmp_path: Path) -> None:
    """It is more than a pipe holds, so the runtime still writes when the hook ends."""
    hook = {"path": "/bin/true", "args": ["true"]}
    after = {"path": "/bin/touch", "args": ["touch", f"{tmp_path}/after"]}
    adjust({"annotations": {"long": "x" * (1 << 17)}, "hooks": {"poststart": [hook], "poststop": [hook, after]}})
    container = kubelet.pod().run("/bin/sh", "-c", "grep SigIgn /proc/self/status; sleep 1000")
    wait_until(lambda: "SigIgn" in container.output())
    assert int(container.output().split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0, "the container's own is as ever"
    container.stop()
    container.remove()
    assert (tmp_path / "after").exists()


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


def knows(handler: str, field: str) -> bool:
    """What the OCI runtime says of itself."""
    told = subprocess.run([handler, "features"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout
    return field in known_fields(told)


@pytest.fixture
def device(kubelet: Kubelet) -> Iterator[str]:
    """A network device of the daemon's namespace; it may go with a pod."""
    name = f"nri{os.getpid() % 10**6}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", f"{name}p"], stderr=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_network_devices_where_the_runtime_knows_them(
    kubelet: Kubelet, adjust: Adjusting, device: str, handler: str
) -> None:
    kubelet.need_handler(handler)
    adjust(linux(net_devices={device: {"name": "net7"}}))
    pod = kubelet.pod(handler=handler)
    if knows(handler, "netDevices"):
        container = pod.run("/bin/sleep", "1000")
        assert "net7" in container.sh("ls /sys/class/net")
        assert not Path(f"/sys/class/net/{device}").exists()
    else:
        with pytest.raises(grpc.RpcError, match=r"knows no network devices \(linux.netDevices\)"):
            pod.create("/bin/true")


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_memory_policies_where_the_runtime_knows_them(kubelet: Kubelet, adjust: Adjusting, handler: str) -> None:
    kubelet.need_handler(handler)
    adjust(linux(memory_policy={"mode": "MPOL_BIND", "nodes": "0"}))
    pod = kubelet.pod(handler=handler)
    if knows(handler, "memoryPolicy"):
        container = pod.run("/bin/sleep", "1000")
        assert " bind:0 " in Path(f"/proc/{info(container)['pid']}/numa_maps").read_text()
    else:
        with pytest.raises(grpc.RpcError, match=r"knows no memory policies \(linux.memoryPolicy\)"):
            pod.create("/bin/true")


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_all_at_once_with_each_runtime(kubelet: Kubelet, adjust: Adjusting, handler: str, tmp_path: Path) -> None:
    kubelet.need_handler(handler)
    adjust(
        {
            "env": [{"key": "A", "value": "1"}],
            "mounts": [{"destination": "/added", "type": "bind", "source": str(tmp_path), "options": ["rbind", "ro"]}],
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": "321", "hard": "654"}],
            "hooks": {"create_runtime": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {tmp_path}/hooked"]}]},
            "linux": {
                "devices": [{"path": "/dev/added", "type": "c", "major": "1", "minor": "5", "file_mode": value(0o666)}],
                "sysctl": {"net.ipv4.ip_unprivileged_port_start": "77"},
                "namespaces": [{"type": "cgroup"}],
                "oom_score_adj": value("500"),
            },
        }
    )
    container = kubelet.pod(handler=handler).run("/bin/sleep", "1000")
    told = container.sh(
        "tr '\\0' '\\n' < /proc/1/environ | grep ^A=; ls /added; head -c 1 /dev/added | wc -c;"
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/1/oom_score_adj"
    )
    assert told.split() == ["A=1", "hooked", "1", "77", "500"]
    assert "Max open files            321                  654" in Path(f"/proc/{info(container)['pid']}/limits").read_text()
    assert os.readlink(f"/proc/{info(container)['pid']}/ns/cgroup") != os.readlink("/proc/self/ns/cgroup")


def test_a_cdi_device_and_its_groups(tmp_path: Path, kubelet: Kubelet, rootfs: Path) -> None:
    """The user that the shim looks up is in the groups that the device brings."""
    specification = {
        "cdiVersion": "0.7.0",
        "kind": "vendor.com/net",
        "devices": [{"name": "a", "containerEdits": {"env": ["BY=cdi"], "additionalGids": [4321]}}],
    }
    (tmp_path / "vendor.json").write_text(json.dumps(specification))
    answer = json_format.ParseDict(
        {"adjust": {"CDI_devices": [{"name": "vendor.com/net=a"}]}}, nri.CreateContainerResponse()
    )
    own = Daemon(f'[containers]\ncdi_spec_dirs = ["{tmp_path}"]\n')
    try:
        own.start()
        assert own.client is not None
        image = own.client.admin.AddRootfs(admin.AddRootfsRequest(name="localhost/busybox:test", directory=str(rootfs)))
        with NriPlugin(own.nri_socket, on={"CreateContainer": lambda _: answer}):
            container = Kubelet(own, image.image_id).pod().shell("echo $BY; id -G")
            assert container.output().split() == ["cdi", "0", "4321"]
            assert list(container.status().user.linux.supplemental_groups) == [0, 4321]
    finally:
        own.destroy()


def test_the_default_validator(kubelet: Kubelet, rootfs: Path) -> None:
    """A node that does not want hooks, and pods that do not go without a plugin."""
    answer = json_format.ParseDict(
        {"adjust": {"hooks": {"poststop": [{"path": "/bin/true"}]}}}, nri.CreateContainerResponse()
    )
    own = Daemon("[nri.default_validator]\nenable = true\nreject_oci_hook_adjustment = true\n")
    try:
        own.start()
        assert own.client is not None
        image = own.client.admin.AddRootfs(admin.AddRootfsRequest(name="localhost/busybox:test", directory=str(rootfs)))
        nodes = Kubelet(own, image.image_id)
        with NriPlugin(own.nri_socket, on={"CreateContainer": lambda _: answer}):
            with pytest.raises(grpc.RpcError, match="plugin 10-tester adds OCI hooks"):
                nodes.pod().create("/bin/true")
            answer.Clear()
            config = nodes.pod_config()
            config.annotations["required-plugins.noderesource.dev"] = "[tester, other]"
            with pytest.raises(grpc.RpcError, match="needs plugin other"):
                nodes.pod(config).create("/bin/true")
            assert nodes.pod().shell("exit 0").wait().exit_code == 0
    finally:
        own.destroy()


def test_two_plugins_that_contradict_each_other(kubelet: Kubelet) -> None:
    def setting(text: str) -> Callable[[Any], nri.CreateContainerResponse]:
        document = {"adjust": {"env": [{"key": "A", "value": text}]}}
        return lambda _: json_format.ParseDict(document, nri.CreateContainerResponse())

    socket = kubelet.daemon.nri_socket
    with NriPlugin(socket, "first", "10", on={"CreateContainer": setting("1")}):
        with NriPlugin(socket, "second", "20", on={"CreateContainer": setting("2")}):
            assert "plugins 10-first and 20-second both set Env A" in refusal(kubelet)
        assert "A=1" in kubelet.pod().shell("env").output().split()


@pytest.mark.controllers("cpu", "pids")
def test_an_update_is_changed_and_goes_to_others_too(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    first, other = (pod.run("/bin/sleep", "1000") for _ in range(2))

    def on_update(request: nri.UpdateContainerRequest) -> nri.UpdateContainerResponse:
        assert request.linux_resources.cpu.quota.value == 20000
        own = {"container_id": first.id, "linux": {"resources": {"cpu": {"quota": value("30000")}, "pids": {"limit": "55"}}}}
        beside = {"container_id": other.id, "linux": {"resources": {"cpu": {"shares": value("333")}}}}
        return json_format.ParseDict({"update": [own, beside]}, nri.UpdateContainerResponse())

    with NriPlugin(kubelet.daemon.nri_socket, on={"UpdateContainer": on_update}) as plugin:
        first.update(cpu_quota=20000, cpu_period=100000)
        assert first.status().resources.linux.cpu_quota == 30000
        assert Path(group_of(first).directory("pids"), "pids.max").read_text().strip() == "55"
        wait_until(lambda: other.status().resources.linux.cpu_shares == 333)

        unasked = {"container_id": other.id, "linux": {"resources": {"pids": {"limit": "44"}, "cpu": {"cpus": "x"}}}}
        assert plugin.update(json_format.ParseDict(unasked, nri.ContainerUpdate())) == [other.id]
        del unasked["linux"]["resources"]["cpu"]  # type: ignore[index]
        assert plugin.update(json_format.ParseDict(unasked, nri.ContainerUpdate())) == []
        assert Path(group_of(other).directory("pids"), "pids.max").read_text().strip() == "44"
