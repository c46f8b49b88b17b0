"""What plugins are told of a pod: CNI_ARGS, and the capabilities of the CNI conventions.

A capability goes to the plugins that declare it. Addresses and MAC are asked for by annotations, as the CRI has no field
for them. What can be had once only, host ports, addresses, the node's pod CIDR, goes to the pod's first network.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_interface
from typing import Any, Final

from proto.errors import invalid
from runtime.network.bandwidth import Shape, bandwidth_of
from runtime.network.seam import NetworkRequest

MAC_ANNOTATION: Final = "cni.crisp/mac"
IPS_ANNOTATION: Final = "cni.crisp/ips"
"""Addresses separated by commas, each with or without a prefix length."""

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def arguments(request: NetworkRequest) -> str:
    """CNI_ARGS, with the names that plugins for Kubernetes look for. Raises INVALID_ARGUMENT."""
    values = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": request.pod_namespace,
        "K8S_POD_NAME": request.pod_name,
        "K8S_POD_INFRA_CONTAINER_ID": request.sandbox_id,
        "K8S_POD_UID": request.pod_uid,
    }
    for key, value in values.items():
        if ";" in value or "=" in value or "\0" in value:
            raise invalid(f"{key}={value!r} cannot be passed to CNI plugins: it has a ';' or '='")
    return ";".join(f"{key}={value}" for key, value in values.items())


def capabilities(request: NetworkRequest, pod_cidrs: Sequence[str], *, first: bool) -> dict[str, Any]:
    """Everything there is to tell, by capability. Raises INVALID_ARGUMENT naming a bad annotation."""
    told: dict[str, Any] = {
        "aliases": list(dict.fromkeys(name for name in (request.pod_name, request.hostname) if name)),
        "io.kubernetes.cri.pod-annotations": dict(request.annotations),
        "dns": {
            "servers": list(request.dns_servers),
            "searches": list(request.dns_searches),
            "options": list(request.dns_options),
        },
    }
    if request.cgroup_parent:
        told["cgroupPath"] = request.cgroup_parent
    told |= _bandwidth(request)
    if first:
        told |= _port_mappings(request) | _asked_for(request)
        if pod_cidrs:
            told["ipRanges"] = [[{"subnet": cidr}] for cidr in pod_cidrs]
    return told


def _port_mappings(request: NetworkRequest) -> dict[str, Any]:
    mappings = [
        {
            "hostPort": port.host_port,
            "containerPort": port.container_port,
            "protocol": port.protocol,
            "hostIP": port.host_ip,
        }
        for port in request.port_mappings
        if port.host_port
    ]
    return {"portMappings": mappings} if mappings else {}


def _bandwidth(request: NetworkRequest) -> dict[str, Any]:
    """Rates in bits per second, bursts in bits."""
    limits = bandwidth_of(request.annotations)
    told: dict[str, int] = {}
    for name, shape in (("ingress", limits.ingress), ("egress", limits.egress)):
        if shape is not None:
            told |= {f"{name}Rate": shape.rate * 8, f"{name}Burst": _burst(shape)}
    return {"bandwidth": told} if told else {}


def _burst(shape: Shape) -> int:
    return min(shape.burst * 8, 0xFFFFFFFF)


def _asked_for(request: NetworkRequest) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if mac := request.annotations.get(MAC_ANNOTATION):
        if not _MAC.fullmatch(mac):
            raise invalid(f'annotation {MAC_ANNOTATION}: "{mac}" is not a MAC address')
        told["mac"] = mac
    if text := request.annotations.get(IPS_ANNOTATION):
        ips = [part.strip() for part in text.split(",")]
        for ip in ips:
            try:
                ip_interface(ip)
            except ValueError:
                raise invalid(f'annotation {IPS_ANNOTATION}: "{ip}" is not an address') from None
        told["ips"] = ips
    return told
