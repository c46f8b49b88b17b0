"""What a pod network is told of a sandbox: the same at attach and at detach, also by a daemon that was started anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proto import api_pb2 as cri
from runtime.network.seam import NetworkRequest, PortMapping

if TYPE_CHECKING:
    from runtime.paths import Paths
    from runtime.records import SandboxRecord

PROTOCOLS: Final = {cri.TCP: "tcp", cri.UDP: "udp", cri.SCTP: "sctp"}


def request(paths: Paths, record: SandboxRecord) -> NetworkRequest:
    """The sandbox as its network sees it."""
    config, metadata = record.config, record.config.metadata
    return NetworkRequest(
        sandbox_id=record.id,
        netns_path=str(paths.netns(record.id)),
        pod_name=metadata.name,
        pod_namespace=metadata.namespace,
        pod_uid=metadata.uid,
        hostname=config.hostname,
        port_mappings=tuple(
            PortMapping(PROTOCOLS[port.protocol], port.container_port, port.host_port, port.host_ip)
            for port in config.port_mappings
            if port.host_port
        ),
        annotations=dict(config.annotations),
        labels=dict(config.labels),
        sysctls=dict(config.linux.sysctls),
        dns_servers=tuple(config.dns_config.servers),
        dns_searches=tuple(config.dns_config.searches),
        dns_options=tuple(config.dns_config.options),
        cgroup_parent=record.cgroup_parent,
        runtime_handler=record.handler,
    )
