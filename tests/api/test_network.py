"""What the kubelet sees of pod networks: a daemon with CNI, and what is the same with every network."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from proto import api_pb2 as cri
from runtime.paths import Paths
from tests.harness.daemon import Daemon
from tests.harness.host import CNI_PLUGINS, needs_cni_plugins
from tests.harness.kubelet import Kubelet
from tests.harness.waiting import wait_until
from tests.kernel.fake_plugin import FakePlugin

pytestmark = [
    pytest.mark.root,
    needs_cni_plugins,
]

TEMPLATE = """{
  "cniVersion": "1.0.0",
  "name": "cluster",
  "plugins": [
    {"type": "bridge", "bridge": "BRIDGE", "isGateway": true,
     "ipam": {"type": "host-local", "dataDir": "DATA",
      "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
      "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}},
    {"type": "tuning", "capabilities": {"mac": true}}
  ]
}"""


@pytest.fixture
def cni(rootfs: Path) -> Iterator[Kubelet]:
    """A kubelet whose node waits for its pod CIDR."""
    daemon = Daemon()
    folder = daemon.directory
    template = folder / "template"
    bridge = f"ca{os.getpid()}"
    template.write_text(TEMPLATE.replace("BRIDGE", bridge).replace("DATA", str(folder / "ipam")))
    lines = f'[network]\nmode = "cni"\n[network.cni]\nconf_template = "{template}"\nbin_dirs = ["{CNI_PLUGINS}"]\n'
    daemon.config.write_text(daemon.config.read_text().replace("[network.cni]\n", lines))
    daemon.start()
    yield Kubelet.on(daemon, rootfs)
    daemon.remove_all()
    left = daemon.leftovers()
    daemon.destroy()
    subprocess.run(["ip", "link", "del", bridge], capture_output=True)  # plugins keep their bridge
    assert left == []


def network_ready(kubelet: Kubelet) -> cri.RuntimeCondition:
    conditions = kubelet.runtime.Status(cri.StatusRequest()).status.conditions
    return next(condition for condition in conditions if condition.type == "NetworkReady")


def give_cidr(kubelet: Kubelet, value: str) -> None:
    request = cri.UpdateRuntimeConfigRequest()
    request.runtime_config.network_config.pod_cidr = value
    kubelet.runtime.UpdateRuntimeConfig(request)


def test_from_pod_cidr_to_pod_ips(cni: Kubelet) -> None:
    assert not network_ready(cni).status
    with pytest.raises(grpc.RpcError) as caught:
        cni.pod()
    assert "the kubelet has not told the node's pod CIDR yet" in caught.value.details()
    give_cidr(cni, "10.77.0.0/24,fd77::/64")
    assert network_ready(cni).status
    first = cni.pod()
    network = first.status().network
    assert network.ip == "10.77.0.2"
    assert [ip.ip for ip in network.additional_ips] == ["fd77::2"]
    reply = cni.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=first.id, verbose=True))
    assert json.loads(reply.info["info"])["network"]["networks"][0]["name"] == "cluster"
    cni.daemon.kill()
    cni.daemon.start()
    assert network_ready(cni).status
    assert first.status().network == network
    config = cni.pod_config()
    config.annotations["cni.crisp/mac"] = "02:11:22:33:44:55"
    second = cni.pod(config)
    assert second.status().network.ip == "10.77.0.3"
    container = second.run("/bin/sleep", "100")
    assert "10.77.0.3" in container.sh("ip addr show eth0 || ifconfig eth0")
    assert "02:11:22:33:44:55" in container.sh("cat /sys/class/net/eth0/address || ip link show eth0")
    first.stop()
    assert not first.status().network.ip
    first.remove()


def test_a_plugins_error_reaches_the_event(cni: Kubelet) -> None:
    give_cidr(cni, "10.77.1.0/24")
    config = cni.pod_config()
    config.annotations["cni.crisp/mac"] = "03:00:00:00:00:01"  # a multicast address, which no interface may have
    with pytest.raises(grpc.RpcError) as caught:
        cni.pod(config)
    assert "network cluster: plugin tuning failed at ADD: " in caught.value.details()
    assert cni.pod().status().network.ip == "10.77.1.3"
    wait_until(lambda: len(list((cni.daemon.directory / "ipam" / "cluster").glob("10.77.1.*"))) == 1)


def test_pods_in_the_nodes_network_meet_no_plugin(cni: Kubelet) -> None:
    pod = cni.pod(network=cri.NODE)  # the node has no network for others yet
    assert pod.status().network == cri.PodSandboxNetworkStatus()
    container = pod.run("/bin/sleep", "100")
    assert container.sh("readlink /proc/self/ns/net").strip() == os.readlink("/proc/self/ns/net")
    assert container.sh("cat /etc/hosts")
    assert not (cni.daemon.directory / "ipam").exists()


def shown(kubelet: Kubelet, sandbox_id: str) -> Any:
    request = cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id, verbose=True)
    return json.loads(kubelet.runtime.PodSandboxStatus(request).info["info"])


def netns_of(kubelet: Kubelet, sandbox_id: str) -> Path:
    namespaces = shown(kubelet, sandbox_id)["runtimeSpec"]["linux"]["namespaces"]
    return Path(next(each["path"] for each in namespaces if each["type"] == "network"))


def is_namespace(path: Path) -> bool:
    return subprocess.run(["nsenter", f"--net={path}", "true"], capture_output=True).returncode == 0


def ours(daemon: Daemon) -> set[Path]:
    """The daemon's files among the host's network namespaces."""
    prefix = Paths(daemon.root, daemon.state).netns("").name
    return {path for path in Path("/var/run/netns").iterdir() if path.name.startswith(prefix)}


def test_the_pods_namespace_is_among_the_hosts(kubelet: Kubelet) -> None:
    pod = kubelet.pod()
    path = netns_of(kubelet, pod.id)
    assert path.parent == Path("/var/run/netns")
    inside = subprocess.run(["ip", "netns", "exec", path.name, "ip", "-o", "address"], capture_output=True, text=True)
    assert pod.status().network.ip in inside.stdout
    [veth] = shown(kubelet, pod.id)["network"]["hostInterfaces"]
    assert subprocess.run(["ip", "link", "show", veth], capture_output=True).returncode == 0
    mounts = subprocess.run(["findmnt", "-no", "PROPAGATION", "/run/netns"], capture_output=True, text=True).stdout
    assert "shared" in mounts or not mounts
    subprocess.run(["ip", "netns", "delete", path.name], check=True)
    kubelet.daemon.kill()
    kubelet.daemon.start()
    assert is_namespace(path), "pinned again"
    assert pod.status().state == cri.SANDBOX_READY
    pod.stop()
    assert not path.exists()
    host = kubelet.pod(network=cri.NODE)
    assert ours(kubelet.daemon) == set()
    host.remove()
    pod.remove()


def test_a_killed_daemon_leaves_no_namespace_among_the_hosts(kubelet: Kubelet) -> None:
    kubelet.daemon.kill()
    kubelet.daemon.start(failpoint="sandbox.namespaces")
    with pytest.raises(grpc.RpcError):
        kubelet.pod()
    kubelet.daemon.wait_death()
    [left] = ours(kubelet.daemon)
    stray = Paths(kubelet.daemon.root, kubelet.daemon.state).netns("0" * 64)
    stray.touch()
    foreign = Path("/var/run/netns") / f"crisp-{'1' * 64}"  # of a daemon with other directories
    subprocess.run(["ip", "netns", "add", foreign.name], check=True)
    try:
        kubelet.daemon.start()
        wait_until(lambda: ours(kubelet.daemon) == set())
        assert not left.exists()
        assert is_namespace(foreign)
    finally:
        subprocess.run(["ip", "netns", "delete", foreign.name], check=True)


def test_plugins_are_given_the_namespace_among_the_hosts(rootfs: Path, tmp_path: Path) -> None:
    plugin = FakePlugin(tmp_path)
    daemon = Daemon()
    (daemon.directory / "net.d").mkdir()
    (daemon.directory / "net.d" / "10-net.conflist").write_text(
        '{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "fake"}]}'
    )
    text = daemon.config.read_text().replace("[network.cni]\n", f'[network.cni]\nbin_dirs = ["{plugin.bin_dir}"]\n')
    daemon.config.write_text(text)
    plugin.behave(DEL=f'nsenter --net="$CNI_NETNS" true && touch {tmp_path}/entered')
    daemon.start()
    try:
        kubelet = Kubelet.on(daemon, rootfs)
        pod = kubelet.pod()
        told = plugin.environment("ADD")["CNI_NETNS"]
        assert told == str(netns_of(kubelet, pod.id))
        assert told.startswith("/var/run/netns/")
        pod.remove()
        assert (tmp_path / "entered").exists()
    finally:
        daemon.remove_all()
        left = daemon.leftovers()
        daemon.destroy()
    assert left == []


@pytest.mark.parametrize("separator", [".", "/"])
def test_ipv6_sysctls_of_the_pod_win(kubelet: Kubelet, separator: str) -> None:
    def pod_with(**sysctls: str) -> Any:
        config = kubelet.pod_config()
        for name, value in sysctls.items():
            config.linux.sysctls[separator.join(("net", "ipv6", "conf", *name.split("__")))] = value
        return kubelet.pod(config)

    def read(pod: Any, *names: str) -> list[str]:
        paths = " ".join(f"/proc/sys/net/ipv6/conf/{name}" for name in names)
        return str(pod.run("/bin/sleep", "100").sh(f"cat {paths}")).split()

    ordinary = kubelet.pod()
    assert len(ordinary.status().network.additional_ips) == 1
    assert read(ordinary, "eth0/disable_ipv6", "eth0/accept_ra") == ["0", "0"]
    for name in ("all__disable_ipv6", "default__disable_ipv6", "eth0__disable_ipv6"):
        off = pod_with(**{name: "1"})
        assert read(off, "eth0/disable_ipv6") == ["1"], name
        assert not off.status().network.additional_ips
        assert off.status().network.ip.count(".") == 3
    routers = pod_with(default__accept_ra="2", default__accept_dad="1")
    assert read(routers, "eth0/accept_ra", "eth0/accept_dad", "eth0/disable_ipv6") == ["2", "1", "0"]
    assert len(routers.status().network.additional_ips) == 1


def test_sysctls_of_the_pods_interface(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.linux.sysctls["net.ipv4.conf.eth0.arp_ignore"] = "2"
    config.linux.sysctls["net/ipv6/conf/eth0/hop_limit"] = "33"
    container = kubelet.pod(config).run("/bin/sleep", "100")
    assert container.sh("cat /proc/sys/net/ipv4/conf/eth0/arp_ignore /proc/sys/net/ipv6/conf/eth0/hop_limit") == "2\n33\n"
    config = kubelet.pod_config()
    config.linux.sysctls["net.ipv4.conf.eth7.arp_ignore"] = "2"
    with pytest.raises(grpc.RpcError) as caught:
        kubelet.pod(config)
    assert "cannot set sysctl net.ipv4.conf.eth7.arp_ignore=2 in the pod" in caught.value.details()
