"""Fuzz targets of what NRI plugins may send: whatever comes in, there are events, never an exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from kernel.cgroups import Hierarchies, Mode
from proto import api_pb2 as cri
from proto import nri_mux, ttrpc
from proto import nri_pb2 as nri
from runtime.host.handlers import FIELDS, Features
from runtime.host.host import Host
from runtime.nri import apply
from runtime.nri.errors import Conflict, Refused
from runtime.nri.merge import CreateResult
from runtime.nri.messages import container_message
from runtime.records import ContainerRecord


def fuzz_nri(data: bytes) -> None:
    """Both directions of one connection; the input is cut by its first byte."""
    demultiplexer, caller, callee = nri_mux.Demultiplexer(), ttrpc.Caller(), ttrpc.Callee()
    for _ in range(8):
        caller.call("service", "method", b"payload", 1.0)
    step = (data[0] if data else 0) + 1
    for at in range(1, len(data), step):
        for connection, part in demultiplexer.receive(data[at : at + step]):
            if connection == nri_mux.PLUGIN:
                assert all(reply.stream < 16 for reply in caller.receive(part))
                continue
            for call in callee.receive(part):
                if call.stream % 4 == 1:
                    callee.answer(call.stream, call.payload)
                else:
                    callee.refuse(call.stream, 2, call.method)
            assert callee.unanswered == 0
            callee.refusals()


HOST = Host(
    capabilities=frozenset(),
    known_capabilities=frozenset(),
    hierarchies=Hierarchies(Mode.V2, {"memory": "/nowhere", "hugetlb": "/nowhere"}, "/nowhere"),
    systemd_cgroups=True,
    has_swap_accounting=True,
    has_seccomp=True,
    has_apparmor=False,
    has_selinux=False,
    has_mqueue=True,
    has_project_quota=False,
    lowest_oom_score_adj=0,
    nofile_limit=1024,
)
RECORD = ContainerRecord(
    id="c0",
    sandbox_id="p0",
    config=cri.ContainerConfig(metadata=cri.ContainerMetadata(name="web")),
    image_id="",
    log_path="",
    created_at=1,
)
SPEC: dict[str, Any] = {
    "process": {"args": ["/app"], "env": ["A=1"]},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": []}],
    "annotations": {},
    "linux": {"namespaces": [{"type": "pid"}], "resources": {"devices": []}, "devices": []},
}
HERE = apply.Circumstances(
    container_id="c0",
    config=RECORD.config,
    resources=RECORD.resources,
    host=HOST,
    handler="crun",
    features=Features("1.0", recursive_read_only=True, fields=frozenset(FIELDS)),
)


def fuzz_adjustments(data: bytes) -> None:
    """Two plugins' answers; the input is cut by its first byte. They are merged and applied, or that is refused."""
    cut = data[0] if data else 0
    result = CreateResult(nri.PodSandbox(), container_message(RECORD, SPEC))
    try:
        for plugin, part in (("00-a", data[1 : cut + 1]), ("01-b", data[cut + 1 :])):
            result.add(plugin, nri.CreateContainerResponse.FromString(part))
        made = apply.adjusted(SPEC, result.adjustment, HERE)
    except (DecodeError, Conflict, Refused):
        return
    container_message(RECORD, json.loads(json.dumps(made.spec))).SerializeToString()


TARGETS: dict[str, Callable[[bytes], None]] = {"nri": fuzz_nri, "nri-adjustments": fuzz_adjustments}
