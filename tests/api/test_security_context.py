"""Isolation, seen from inside real containers and from the host: capabilities, devices, privileges, what /proc tells."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import grpc
import pytest

from kernel import capabilities
from proto import api_pb2 as cri
from tests.harness.kubelet import Container, Kubelet

pytestmark = pytest.mark.root

TUN = "/dev/net/tun"
FUSE = "/dev/fuse"  # runc before 1.2 gives every container the right to /dev/net/tun
NAMES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
DEFAULT_MASK = 0xA80425FB
"""chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod,
audit_write, setfcap."""


def config(**context: object) -> cri.ContainerConfig:
    wanted = cri.ContainerConfig()
    wanted.linux.security_context.MergeFrom(cri.LinuxContainerSecurityContext(**context))  # type: ignore[arg-type]
    return wanted


def with_capabilities(**asked: list[str]) -> cri.ContainerConfig:
    return config(capabilities=cri.Capability(**asked))


def status_of(container: Container) -> dict[str, str]:
    """/proc/self/status of the container's init."""
    return dict(line.split(":\t", 1) for line in container.output().splitlines() if ":\t" in line)


def masks(kubelet: Kubelet, wanted: cri.ContainerConfig) -> dict[str, int]:
    found = status_of(kubelet.pod().shell("cat /proc/self/status", wanted))
    return {name: int(found[name], 16) for name in NAMES}


def test_default_capabilities(kubelet: Kubelet) -> None:
    ours = capabilities.to_mask(capabilities.bounding_set())
    found = masks(kubelet, config())
    assert found["CapEff"] == found["CapPrm"] == found["CapBnd"] == DEFAULT_MASK & ours
    assert found["CapInh"] == found["CapAmb"] == 0


def test_all_capabilities_are_what_the_node_has(kubelet: Kubelet) -> None:
    found = masks(kubelet, with_capabilities(add_capabilities=["ALL"], drop_capabilities=["NET_RAW"]))
    wanted = capabilities.bounding_set() - {"CAP_NET_RAW"}
    assert found["CapBnd"] == found["CapEff"] == capabilities.to_mask(wanted)


def test_a_user_that_is_not_root_has_none_but_ambient_ones(kubelet: Kubelet) -> None:
    wanted = config(run_as_user={"value": 1000})
    found = masks(kubelet, wanted)
    assert found["CapEff"] == found["CapPrm"] == found["CapAmb"] == 0
    wanted.linux.security_context.capabilities.add_ambient_capabilities.append("NET_BIND_SERVICE")
    found = masks(kubelet, wanted)
    assert found["CapEff"] == found["CapAmb"] == found["CapInh"] == 1 << capabilities.NUMBERS["CAP_NET_BIND_SERVICE"]


def test_unknown_capabilities_are_refused(kubelet: Kubelet) -> None:
    with pytest.raises(grpc.RpcError, match="unknown capability 'FLY'"):
        kubelet.pod().create("/bin/true", config=with_capabilities(add_capabilities=["FLY"]))


def test_privileged_is_everything_the_node_has_and_no_filter(kubelet: Kubelet) -> None:
    cfg = kubelet.pod_config()
    cfg.linux.security_context.privileged = True
    wanted = config(privileged=True)
    wanted.linux.security_context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    wanted.linux.security_context.masked_paths.append("/proc/kcore")
    found = status_of(kubelet.pod(cfg).shell("cat /proc/self/status; ! grep kcore /proc/mounts", wanted))
    assert int(found["CapEff"], 16) == capabilities.to_mask(capabilities.bounding_set())
    assert found["Seccomp"] == "0"


@pytest.mark.skipif(not os.path.exists(FUSE), reason=f"no {FUSE}")
def test_device_permissions_are_those_asked_for(kubelet: Kubelet) -> None:
    wanted = cri.ContainerConfig(devices=[cri.Device(host_path=FUSE, container_path="/dev/given", permissions="r")])
    container = kubelet.pod().run("/bin/sleep", "100", config=wanted)
    container.sh("chmod 666 /dev/given && : < /dev/given")
    # Not the file's mode: the device rules.
    refused = container.exec("/bin/sh", "-c", ": > /dev/given")
    assert refused.exit_code != 0
    assert b"not permitted" in refused.stderr


@pytest.mark.skipif(not os.path.exists(TUN), reason=f"no {TUN}")
def test_a_directory_of_devices(kubelet: Kubelet) -> None:
    wanted = cri.ContainerConfig(devices=[cri.Device(host_path="/dev/net", container_path="/dev/net", permissions="rwm")])
    assert kubelet.pod().shell("stat -c %t:%T /dev/net/tun", wanted).output().strip() == "a:c8"


def test_what_is_not_a_device_is_refused(kubelet: Kubelet) -> None:
    for path, message in (("/etc/passwd", "is not a device"), ("/dev/not-there", "No such file")):
        with pytest.raises(grpc.RpcError, match=message):
            kubelet.pod().create("/bin/true", config=cri.ContainerConfig(devices=[cri.Device(host_path=path)]))


def test_unmasked_proc(kubelet: Kubelet) -> None:
    """procMount: Unmasked comes as empty lists."""
    container = kubelet.pod().run("/bin/sleep", "100", config=config(masked_paths=[], readonly_paths=[]))
    mounts = container.sh("cat /proc/self/mounts")
    assert " /proc/sys " not in mounts
    assert " /proc/kcore " not in mounts


def test_apparmor_that_the_host_lacks(kubelet: Kubelet) -> None:
    if Path("/sys/kernel/security/apparmor").is_dir():
        pytest.skip("this host has AppArmor")
    for kind, reference in ((cri.SecurityProfile.Localhost, "mine"), (cri.SecurityProfile.RuntimeDefault, "")):
        wanted = config()
        wanted.linux.security_context.apparmor.profile_type = kind
        wanted.linux.security_context.apparmor.localhost_ref = reference
        with pytest.raises(grpc.RpcError, match="the host has no AppArmor"):
            kubelet.pod().create("/bin/true", config=wanted)
    wanted = config()
    wanted.linux.security_context.apparmor.profile_type = cri.SecurityProfile.Unconfined
    container = kubelet.pod().shell("true", wanted)
    assert container.status().exit_code == 0
    written = Path(kubelet.daemon.state, "containers", container.id, "config.json")
    assert "apparmorProfile" not in json.loads(written.read_text())["process"]


def test_selinux_options_say_nothing_where_selinux_is_off(kubelet: Kubelet) -> None:
    """Clients send them to every node; the log says once of each kind that it is not given."""
    if Path("/sys/fs/selinux/enforce").exists():
        pytest.skip("this host has SELinux")
    options = {"user": "system_u", "role": "system_r", "type": "container_logreader_t", "level": "s0:c0,c1"}
    for _ in range(2):
        assert kubelet.pod().shell("true", config(selinux_options=options)).status().exit_code == 0
    log = kubelet.daemon.log_path.read_text()
    assert [log.count(f"SELinux {kind}s: SELinux is off") for kind in options] == [1, 1, 1, 1]


def test_target_namespace(kubelet: Kubelet) -> None:
    """An ephemeral debug container sees its target's processes, and nothing of another pod's."""
    pod, stranger = kubelet.pod(), kubelet.pod()
    target = pod.run("/bin/sleep", "3333")
    other = pod.run("/bin/sleep", "4444")
    debug = config(namespace_options={"pid": cri.TARGET, "target_id": target.id})
    seen = pod.run("/bin/sleep", "5555", config=debug).sh("ps -o args")
    assert "sleep 3333" in seen
    assert "sleep 4444" not in seen
    with pytest.raises(grpc.RpcError, match="belongs to another pod"):
        stranger.create("/bin/true", config=debug)
    other.stop()
    debug.linux.security_context.namespace_options.target_id = other.id
    with pytest.raises(grpc.RpcError, match="does not run"):
        pod.create("/bin/true", config=debug)


def test_init_of_a_shared_pid_namespace_can_do_nothing(kubelet: Kubelet) -> None:
    container = kubelet.pod(pid=cri.POD).run("/bin/sleep", "100", config=config())
    status = dict(line.split(":\t", 1) for line in container.sh("cat /proc/1/status").splitlines() if ":\t" in line)
    assert all(int(status[name], 16) == 0 for name in NAMES)
    assert status["NoNewPrivs"] == "1"
    assert set(status["Uid"].split()) == {"65535"}
    assert container.exec("/bin/sh", "-c", "ls /proc/1/root/etc").exit_code != 0


def test_supplemental_groups_of_volumes(kubelet: Kubelet) -> None:
    """fsGroup comes as a supplemental group."""
    wanted = config(run_as_user={"value": 1000}, supplemental_groups=[7777])
    container = kubelet.pod().shell("id -G", wanted)
    assert "7777" in container.output().split()
    assert 7777 in container.status().user.linux.supplemental_groups


def test_nothing_of_the_daemon_leaks_into_containers(kubelet: Kubelet) -> None:
    """Neither descriptors nor variables nor limits of the daemon or the shim."""
    container = kubelet.pod().shell("ls -l /proc/self/fd; env; ulimit -n", config())
    output = container.output()
    # Its streams, and the directory that `ls` reads.
    assert len([line for line in output.splitlines() if line[1:3] in ("r-", "-w", "rw")]) == 4, output
    assert "CRISP" not in output
    assert "PYTHON" not in output
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert output.split()[-1] == "1024" or limit < 1024


def test_apparmor_where_the_host_has_it(kubelet: Kubelet) -> None:
    if not Path("/sys/kernel/security/apparmor").is_dir():
        pytest.skip("this host has no AppArmor")
    current = "cat /proc/self/attr/current"
    container = kubelet.pod().run("/bin/sleep", "100")
    assert container.sh(current).split()[0] == "crisp-default"
    for knob in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern"):
        assert container.exec("/bin/sh", "-c", f"echo x > {knob}").exit_code != 0, knob
    assert kubelet.pod().shell(current, config()).output().split() == ["crisp-default", "(enforce)"]
    wanted = config()
    wanted.linux.security_context.apparmor.profile_type = cri.SecurityProfile.Unconfined
    assert kubelet.pod().shell(current, wanted).output().strip() == "unconfined"
    wanted.linux.security_context.apparmor.profile_type = cri.SecurityProfile.Localhost
    wanted.linux.security_context.apparmor.localhost_ref = "not-there"
    with pytest.raises(grpc.RpcError, match="'not-there' is not loaded"):
        kubelet.pod().create("/bin/true", config=wanted)
