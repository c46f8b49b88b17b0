"""The [network] section of the configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final

from proto.errors import invalid

Network = IPv4Network | IPv6Network

MODES: Final = ("auto", "builtin", "cni")

MAX_BRIDGE_NAME: Final = 15
"""Bytes; the kernel's IFNAMSIZ less its NUL."""

SMALLEST_PREFIX: Final = {4: 29, 6: 125}
"""Longest prefix of a pod subnet that still has room for the gateway and a few pods."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class HandlerNetworks:
    """CNI networks of the pods of one runtime handler."""

    conf_dir: Path
    max_conf_num: int


@dataclass(frozen=True, slots=True)
class CniConfig:
    """CNI plugins."""

    conf_dir: Path = Path("/etc/cni/net.d")
    """Directory of the network configurations; the first good file in the order of names is the pods' network."""
    bin_dirs: tuple[Path, ...] = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))
    """Directories of the plugins."""
    max_conf_num: int = 1
    """Networks per pod, eth0, eth1 and so on; 0: all that the directory has."""
    conf_template: str = ""
    """File: a template, as containerd has it, of the network configuration for the node's pod CIDR; empty: none."""
    plugin_seconds: float = 60.0
    """How long one call of a plugin may take."""
    status_seconds: float = 60.0
    """How long a plugin's word that it is ready is believed."""
    gc_seconds: float = 600.0
    """How often plugins are told what is in use, and attachments that could not be undone are tried again."""

    def __post_init__(self) -> None:
        if self.max_conf_num < 0:
            raise invalid(f"max_conf_num: {self.max_conf_num} is less than 0")
        if self.conf_template and not self.conf_template.startswith("/"):
            raise invalid(f"conf_template: {self.conf_template!r} is not an absolute path")
        if not self.bin_dirs:
            raise invalid("bin_dirs: at least one directory")
        for name in ("plugin_seconds", "status_seconds", "gc_seconds"):
            if getattr(self, name) < 1:
                raise invalid(f"{name}: at least 1")


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Pod networks. Two daemons on one host need a bridge, a table and subnets of their own each."""

    mode: str = "auto"
    """builtin; cni; or auto: CNI where there is a configuration for it or a cluster's network is to be expected, builtin
    on a node of its own."""
    cluster_files: tuple[str, ...] = (
        "/etc/kubernetes/kubelet.conf",
        "/etc/kubernetes/bootstrap-kubelet.conf",
        "/var/lib/kubelet/config.yaml",
        "/var/lib/kubelet/instance-config.yaml",
        "/var/lib/kubelet/kubeadm-flags.env",
        "/usr/lib/systemd/system/kubelet.service",
        "/lib/systemd/system/kubelet.service",
        "/etc/systemd/system/kubelet.service",
        "/etc/init.d/kubelet",
    )
    """With auto: files of kubeadm, the kubelet and its package. Where one exists, or once the kubelet hands over a pod
    CIDR, pods wait for a CNI configuration. Empty: the pod CIDR alone tells."""
    cni: CniConfig = field(default_factory=CniConfig)
    bridge: str = "crisp0"
    """Interface name; the gateway of all pods."""
    table: str = "crisp"
    """nftables table of the family inet; nothing outside it is touched."""
    subnets: tuple[str, ...] = ("10.201.0.0/16", "fd63:7269:7370::/64")
    """At most one per family; pods get an address of each, and the first family's is their primary one. The
    subnet's first address is the bridge's."""
    direct: tuple[str, ...] = ()
    """Networks that pods reach with their own address, without masquerade: they must have routes back."""
    isolated: bool = False
    """Refuse connections that other bridges' containers open to this network's pods."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise invalid(f"mode: {self.mode!r} is none of {', '.join(MODES)}")
        if not _NAME.fullmatch(self.bridge) or len(self.bridge) > MAX_BRIDGE_NAME:
            raise invalid(f"bridge: {self.bridge!r} is no interface name of at most {MAX_BRIDGE_NAME} characters")
        if not _NAME.fullmatch(self.table):
            raise invalid(f"table: {self.table!r} is no nftables table name")
        families = [network.version for network in self.networks()]
        if not families or len(families) != len(set(families)):
            raise invalid("subnets: one IPv4 network, one IPv6 network, or one of each")
        for network in self.networks():
            if network.prefixlen > SMALLEST_PREFIX[network.version]:
                raise invalid(f"subnets: {network} is too small, at least a /{SMALLEST_PREFIX[network.version]}")
        self.direct_networks()
        if relative := [path for path in self.cluster_files if not path.startswith("/")]:
            raise invalid(f"cluster_files: {relative[0]!r} is not an absolute path")

    def networks(self) -> tuple[Network, ...]:
        """The pod subnets."""
        return tuple(_network("subnets", value) for value in self.subnets)

    def direct_networks(self) -> tuple[Network, ...]:
        """The networks reached without masquerade."""
        return tuple(_network("direct", value) for value in self.direct)


def _network(key: str, value: str) -> Network:
    try:
        return ip_network(value)
    except ValueError as error:
        raise invalid(f"{key}: {error}") from None
