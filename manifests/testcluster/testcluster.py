#!/usr/bin/env python3
"""A cluster's worth of nodes on one machine, without Docker: each node is a network namespace with a crisp of its own.

    testcluster.py up [--nodes 3] [--name tc] [--directory /var/lib/testcluster] [--crisp PROGRAM]
                      [--kubelet PROGRAM [--kubeconfig FILE | --control-plane DIRECTORY_OF_PROGRAMS]]
    testcluster.py status
    testcluster.py restart NODE                         the node's crisp; its pods run on
    testcluster.py down

    namespace tc-fabric:  bridge fabric ── 192.168.250.0/24, fd99::/64
                            ├── tc-1: eth0 .1   crisp0 10.244.1.0/24, fd00:10:244:1::/64
                            ├── tc-2: eth0 .2   crisp0 10.244.2.0/24, fd00:10:244:2::/64
                            └── …               with routes to the other nodes' pods

Node N's files are in DIRECTORY/N: crisp.toml, crisp.sock, lib, run, crisp.log. `crisp --socket DIRECTORY/N/crisp.sock ps`
and crictl reach it. With --kubelet each node also gets a kubelet: in the cluster of --kubeconfig, or alone with static pods
in DIRECTORY/N/static-pods. With --control-plane the cluster has a control plane of its own (control_plane.py): etcd,
kube-apiserver, kube-controller-manager and kube-scheduler of that directory run in the fabric's namespace, and a kube-proxy
in nftables mode on each node. kubectl reaches it from any of the namespaces:

    nsenter --net=/run/netns/tc-fabric kubectl --kubeconfig DIRECTORY/admin.kubeconfig get nodes

Needs root, iproute2, util-linux, openssl for a control plane, and what crisp needs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import control_plane
from control_plane import ControlPlane

START_SECONDS = 60.0
STOP_SECONDS = 60.0
MOST_NODES = 200

KUBELET_LOGS = "/var/log/containers"
KUBELET_DIRECTORIES = ("/var/lib/kubelet/device-plugins", "/var/lib/kubelet", KUBELET_LOGS)
"""Which every kubelet makes, whatever its root directory is; the inner ones first."""

CRISP_TOML = """\
root = "{directory}/lib"
state = "{directory}/run"
socket = "{directory}/crisp.sock"

[cgroup]
driver = "cgroupfs"
parent = "{cgroup}/pods"
shims = "{cgroup}/shims"

[metrics]
cadvisor_socket = "{directory}/containerd.sock"

[network]
mode = "builtin"
subnets = ["10.244.{number}.0/24", "fd00:10:244:{number}::/64"]
# Pods of other nodes see a pod's own address.
direct = ["10.244.0.0/16", "192.168.250.0/24", "fd00:10:244::/48", "fd99::/64"]
"""

KUBELET_YAML = """\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{directory}/crisp.sock
imageServiceEndpoint: unix://{directory}/crisp.sock
staticPodPath: {directory}/static-pods
podLogsDir: {directory}/pod-logs
volumePluginDir: {directory}/volume-plugins
cgroupRoot: {cgroup}
failSwapOn: false
failCgroupV1: false
authentication:
  anonymous: {{enabled: {anonymous}}}
  webhook: {{enabled: {webhook}}}
{authority}authorization:
  mode: {authorization}
"""


class Machine:
    """A network namespace with a directory, and processes."""

    def __init__(self, namespace: str, directory: Path) -> None:
        self.namespace = namespace
        self.directory = directory

    def inside(self, *command: str) -> list[str]:
        """The command, run in the machine's network namespace and nothing else of it: mounts must stay the host's."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *command]

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a program that goes on when this one ends; its pid and its log are in the machine's directory."""
        with open(self.directory / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                self.inside(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        (self.directory / f"{name}.pid").write_text(str(process.pid))

    def pid(self, name: str) -> int:
        """Of a program that was started and still runs, 0 if it does not."""
        try:
            pid = int((self.directory / f"{name}.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return 0
        return pid if os.fsencode(str(self.directory)) in command else 0  # the number may be somebody else's by now

    def stop(self, name: str) -> None:
        """SIGTERM, and wait."""
        pid = self.pid(name)
        if not pid:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self.pid(name) and not _is_zombie(pid):
            if time.monotonic() > deadline:
                sys.exit(f"{self.namespace}: {name}, process {pid}, does not end")
            time.sleep(0.05)
        (self.directory / f"{name}.pid").unlink()


class Node(Machine):
    """One node: a machine with crisp."""

    def __init__(self, cluster: str, directory: Path, number: int) -> None:
        super().__init__(f"{cluster}-{number}", directory / str(number))
        self.number = number
        self.cgroup = f"/testcluster-{cluster}/{number}"

    def start_crisp(self, crisp: Sequence[str]) -> None:
        """Start the node's crisp and wait until it serves."""
        socket = self.directory / "crisp.sock"
        socket.unlink(missing_ok=True)
        self.start("crisp", [*crisp, "serve", "--config", str(self.directory / "crisp.toml")])
        deadline = time.monotonic() + START_SECONDS
        while not socket.exists():
            if time.monotonic() > deadline or not Path(f"/proc/{(self.directory / 'crisp.pid').read_text()}").exists():
                sys.exit(f"{self.namespace}: crisp does not start, see {self.directory}/crisp.log")
            time.sleep(0.05)

    def start_kubelet(self, kubelet: str, kubeconfig: str, authority: str = "") -> None:
        """Start the node's kubelet, in a cluster or alone."""
        for name in ("static-pods", "pod-logs", "volume-plugins", "kubelet"):
            (self.directory / name).mkdir(exist_ok=True)
        alone = not kubeconfig
        (self.directory / "kubelet.yaml").write_text(
            KUBELET_YAML.format(
                directory=self.directory,
                cgroup=self.cgroup,
                anonymous=str(alone).lower(),
                webhook=str(not alone).lower(),
                authority=f"  x509: {{clientCAFile: {authority}}}\n" if authority else "",
                authorization="AlwaysAllow" if alone else "Webhook",
            )
        )
        for hierarchy in _cgroup_roots():
            Path(f"{hierarchy}{self.cgroup}").mkdir(parents=True, exist_ok=True)
        options = [
            f"--config={self.directory}/kubelet.yaml",
            f"--root-dir={self.directory}/kubelet",
            f"--cert-dir={self.directory}/kubelet-certificates",
            f"--containerd={self.directory}/containerd.sock",  # whom cAdvisor asks
            f"--hostname-override={self.namespace}",
            f"--node-ip=192.168.250.{self.number}",
            *([f"--kubeconfig={kubeconfig}"] if kubeconfig else []),
        ]
        self.start("kubelet", [kubelet, *options])


def up(options: argparse.Namespace) -> None:
    """Make everything; what is there already is an error, and nothing is touched."""
    directory: Path = options.directory
    if (directory / "cluster.json").exists():
        sys.exit(f"{directory} has a cluster already: {sys.argv[0]} down")
    if directory.exists() and (others := sorted(path.name for path in directory.iterdir() if path.name != "lost+found")):
        sys.exit(f"{directory} is not empty ({others[0]}), and `down` removes all of it: choose another --directory")
    if options.control_plane and (lacking := control_plane.missing(Path(options.control_plane))):
        sys.exit(f"{options.control_plane} lacks {', '.join(lacking)}")
    if options.control_plane and (not options.kubelet or options.kubeconfig):
        sys.exit("--control-plane is for nodes with a --kubelet, and makes its own kubeconfig")
    taken = [name for name in _namespaces(options.name, options.nodes) if Path(f"/run/netns/{name}").exists()]
    if taken:
        sys.exit(f"there is a network namespace {taken[0]} already, and not of this cluster: choose another --name")
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"name": options.name, "nodes": options.nodes, "crisp": shlex.split(options.crisp)}
    settings["made"] = [path for path in KUBELET_DIRECTORIES if options.kubelet and not Path(path).exists()]
    (directory / "cluster.json").write_text(json.dumps(settings))
    nodes = [Node(options.name, directory, number + 1) for number in range(options.nodes)]
    fabric = f"{options.name}-fabric"
    _ip("netns", "add", fabric)
    _ip("-n", fabric, "link", "add", "fabric", "type", "bridge", "forward_delay", "0")
    _ip("-n", fabric, "link", "set", "fabric", "up")
    plane = _start_control_plane(options, fabric) if options.control_plane else None
    for node in nodes:
        _connect(node, fabric, nodes)
        node.directory.mkdir()
        text = CRISP_TOML.format(directory=node.directory, cgroup=node.cgroup, number=node.number)
        (node.directory / "crisp.toml").write_text(text)
        node.start_crisp(settings["crisp"])
        if plane is not None:
            _join(node, plane, options.kubelet)
        elif options.kubelet:
            node.start_kubelet(options.kubelet, options.kubeconfig)
        print(f"{node.namespace}  unix://{node.directory}/crisp.sock")


def _start_control_plane(options: argparse.Namespace, fabric: str) -> ControlPlane:
    """Start it in the fabric's namespace, which gets an address of its own, and wait until it serves."""
    _ip("-n", fabric, "link", "set", "lo", "up")
    _ip("-n", fabric, "address", "add", f"{control_plane.ADDRESS}/24", "dev", "fabric")
    machine = Machine(fabric, options.directory / "control-plane")
    plane = ControlPlane(machine.directory, Path(options.control_plane).resolve())
    plane.prepare()
    for name, command in plane.commands().items():
        machine.start(name, command)
        if name == "kube-apiserver":  # the others give up if it takes long
            plane.wait(machine.inside())
    (options.directory / "admin.kubeconfig").symlink_to("control-plane/admin.kubeconfig")
    return plane


def _join(node: Node, plane: ControlPlane, kubelet: str) -> None:
    """Give a node its kubelet, its kube-proxy, and routes: to Services for the node itself, to its pods for the fabric."""
    fabric = f"{node.namespace.rpartition('-')[0]}-fabric"
    _ip("-n", fabric, "route", "add", f"10.244.{node.number}.0/24", "via", f"192.168.250.{node.number}")
    _ip("-n", node.namespace, "route", "add", control_plane.SERVICES, "via", control_plane.ADDRESS)
    node.start_kubelet(kubelet, str(plane.node_kubeconfig(node.namespace)), str(plane.pki / "ca.crt"))
    node.start("kube-proxy", plane.proxy(node.namespace, node.directory))


def _control_plane(directory: Path) -> Machine:
    settings = json.loads((directory / "cluster.json").read_text())
    return Machine(f"{settings['name']}-fabric", directory / "control-plane")


def _connect(node: Node, fabric: str, nodes: Sequence[Node]) -> None:
    _ip("netns", "add", node.namespace)
    _ip("-n", node.namespace, "link", "set", "lo", "up")
    port = f"port{node.number}"
    _ip("-n", node.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", fabric)
    _ip("-n", fabric, "link", "set", port, "master", "fabric", "up")
    _ip("-n", node.namespace, "address", "add", f"192.168.250.{node.number}/24", "dev", "eth0")
    _ip("-n", node.namespace, "address", "add", f"fd99::{node.number}/64", "dev", "eth0", "nodad")
    _ip("-n", node.namespace, "link", "set", "eth0", "up")
    for other in nodes:
        if other is not node:
            _ip("-n", node.namespace, "route", "add", f"10.244.{other.number}.0/24", "via", f"192.168.250.{other.number}")
            _ip("-n", node.namespace, "route", "add", f"fd00:10:244:{other.number}::/64", "via", f"fd99::{other.number}")


def status(options: argparse.Namespace) -> None:
    """A line for each node; exit code 1 if something does not run."""
    sick = False
    for node, _ in _nodes(options.directory):
        running = [name for name in ("crisp", "kubelet", "kube-proxy") if node.pid(name)]
        sick |= "crisp" not in running
        print(f"{node.namespace}  unix://{node.directory}/crisp.sock  {' '.join(running) or 'stopped'}")
    if (options.directory / "control-plane").exists():
        machine = _control_plane(options.directory)
        running = [name for name in control_plane.DAEMONS if machine.pid(name)]
        sick |= len(running) < len(control_plane.DAEMONS)
        print(f"{machine.namespace}  {options.directory}/admin.kubeconfig  {' '.join(running) or 'stopped'}")
    sys.exit(int(sick))


def restart(options: argparse.Namespace) -> None:
    """End a node's crisp and start it again."""
    for node, crisp in _nodes(options.directory):
        if node.number == options.node:
            node.stop("crisp")
            node.start_crisp(crisp)
            return
    sys.exit(f"there is no node {options.node}")


def down(options: argparse.Namespace) -> None:
    """Remove pods, daemons, namespaces, cgroups and files."""
    for node, crisp in _nodes(options.directory):
        for name in ("kube-proxy", "kubelet", "crisp"):
            node.stop(name)
        namespace = Path(f"/run/netns/{node.namespace}")
        if namespace.exists() and (node.directory / "crisp.toml").exists():
            removal = [
                *crisp,
                "uninstall",
                "--yes",
                "--end-pods",
                "--grace",
                "0",
                "--config",
                f"{node.directory}/crisp.toml",
            ]
            subprocess.run(node.inside(*removal), check=True, stdout=subprocess.DEVNULL)
        _unmount_below(node.directory)
        for hierarchy in _cgroup_roots():
            _remove_cgroups(Path(f"{hierarchy}{node.cgroup}"))
        if namespace.exists():
            _ip("netns", "delete", node.namespace)
    for name in control_plane.DAEMONS:
        _control_plane(options.directory).stop(name)
    settings = json.loads((options.directory / "cluster.json").read_text())
    if Path(f"/run/netns/{settings['name']}-fabric").exists():
        _ip("netns", "delete", f"{settings['name']}-fabric")
    for hierarchy in _cgroup_roots():
        _remove_cgroups(Path(f"{hierarchy}/testcluster-{settings['name']}"))
    _remove_kubelets_traces(options.directory, settings.get("made", ()))
    _remove_directory(options.directory)


def _namespaces(cluster: str, nodes: int) -> list[str]:
    return [f"{cluster}-fabric", *(f"{cluster}-{number + 1}" for number in range(nodes))]


def _remove_kubelets_traces(directory: Path, made: Sequence[str]) -> None:
    """What kubelets leave in places of their own choice: links to logs, and directories that were not there before."""
    links = Path(KUBELET_LOGS).iterdir() if Path(KUBELET_LOGS).is_dir() else iter(())
    for link in links:
        if link.is_symlink() and os.readlink(link).startswith(f"{directory}/"):
            link.unlink()
    for path in made:
        with contextlib.suppress(OSError):  # it is in use by now
            Path(path).rmdir()


def _remove_directory(directory: Path) -> None:
    """Remove the cluster's files. What is mounted among them is unmounted and never entered."""
    _unmount_below(directory)
    for path in directory.iterdir():
        if path.name == "lost+found":
            continue  # a file system's own
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not os.path.ismount(directory):
        directory.rmdir()


def _unmount_below(directory: Path) -> None:
    """Unmount a kubelet's volumes, and whatever else is mounted below a directory that is going to be removed."""
    for mount in reversed(_mounts_below(directory)):
        subprocess.run(["umount", "--no-canonicalize", mount], check=False)
    if left := _mounts_below(directory):
        sys.exit(f"{left[-1]} is mounted and cannot be unmounted: nothing in {directory} was removed; repeat when it can")


def _mounts_below(directory: Path) -> list[str]:
    """Mount points below a directory in the order of mounting; not the directory itself, which may be a disk's."""
    prefix = f"{directory.resolve()}/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in file]
    return [point for point in points if point.startswith(prefix)]


def _nodes(directory: Path) -> list[tuple[Node, list[str]]]:
    try:
        settings = json.loads((directory / "cluster.json").read_text())
    except FileNotFoundError:
        sys.exit(f"{directory} has no cluster")
    return [(Node(settings["name"], directory, n + 1), settings["crisp"]) for n in range(settings["nodes"])]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _is_zombie(pid: int) -> bool:
    """Whether it has ended and is not reaped: some init programs take their time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _cgroup_roots() -> list[Path]:
    """Mount points of all hierarchies: one on cgroup v2."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = [line.split() for line in file]
    return [Path(fields[4]) for fields in mounts if fields[fields.index("-") + 1] in ("cgroup", "cgroup2")]


def _remove_cgroups(directory: Path) -> None:
    for path in sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True):
        path.rmdir()
    if directory.exists():
        directory.rmdir()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("/var/lib/testcluster"))
    verbs = parser.add_subparsers(required=True)
    start = verbs.add_parser("up", help="make a cluster")
    start.add_argument("--nodes", type=int, default=3, choices=range(1, MOST_NODES + 1), metavar="N")
    start.add_argument("--name", default="tc", help="what namespaces and cgroups are called after")
    start.add_argument("--crisp", default="crisp", help="the crisp command, with its own arguments if it has some")
    start.add_argument("--kubelet", default="", help="a kubelet, if the nodes shall have one")
    start.add_argument("--kubeconfig", default="", help="for the kubelets; without it each is alone with its static pods")
    start.add_argument(
        "--control-plane", default="", help="a directory with etcd and the kube-* programs, for a cluster of its own"
    )
    start.set_defaults(run=up)
    verbs.add_parser("status", help="what runs").set_defaults(run=status)
    again = verbs.add_parser("restart", help="restart a node's crisp")
    again.add_argument("node", type=int)
    again.set_defaults(run=restart)
    verbs.add_parser("down", help="remove the cluster").set_defaults(run=down)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
