from __future__ import annotations

import pytest

from proto.errors import CrispError
from runtime.network.cni.capabilities import arguments, capabilities
from runtime.network.seam import NetworkRequest, PortMapping


def request(**options: object) -> NetworkRequest:
    return NetworkRequest(sandbox_id="id", netns_path="/ns", **options)  # type: ignore[arg-type]


def test_arguments() -> None:
    text = arguments(request(pod_name="web", pod_namespace="shop", pod_uid="u"))
    assert text == "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=id;K8S_POD_UID=u"


def test_arguments_cannot_be_smuggled_in() -> None:
    with pytest.raises(CrispError, match="cannot be passed to CNI plugins"):
        arguments(request(pod_name="web;IP=10.0.0.1"))


def test_everything() -> None:
    annotations = {
        "kubernetes.io/ingress-bandwidth": "8M",
        "cni.crisp/mac": "02:00:00:00:00:01",
        "cni.crisp/ips": "10.0.0.5/24, fd00::5",
    }
    asked = request(
        pod_name="web",
        hostname="web-1",
        cgroup_parent="/pods",
        annotations=annotations,
        dns_servers=("10.0.0.10",),
        dns_searches=("svc",),
        dns_options=("ndots:5",),
        port_mappings=(PortMapping("tcp", 80, 8080, "127.0.0.1"), PortMapping("udp", 53, 0)),
    )
    told = capabilities(asked, ("10.0.0.0/24", "fd00::/64"), first=True)
    assert told == {
        "aliases": ["web", "web-1"],
        "io.kubernetes.cri.pod-annotations": annotations,
        "dns": {"servers": ["10.0.0.10"], "searches": ["svc"], "options": ["ndots:5"]},
        "cgroupPath": "/pods",
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 1_048_576},
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}],
        "ipRanges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]],
        "mac": "02:00:00:00:00:01",
        "ips": ["10.0.0.5/24", "fd00::5"],
    }
    second = capabilities(asked, ("10.0.0.0/24",), first=False)
    assert not second.keys() & {"portMappings", "ipRanges", "mac", "ips"}


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"cni.crisp/mac": "02:00"}, 'cni.crisp/mac: "02:00" is not a MAC address'),
        ({"cni.crisp/ips": "10.0.0.1,ten"}, 'cni.crisp/ips: "ten" is not an address'),
        ({"kubernetes.io/egress-bandwidth": "fast"}, "is not a quantity"),
    ],
)
def test_bad_annotations(annotations: dict[str, str], message: str) -> None:
    with pytest.raises(CrispError) as caught:
        capabilities(request(annotations=annotations), (), first=True)
    assert message in caught.value.message
