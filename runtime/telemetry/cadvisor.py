"""Labels for the kubelet's built-in cAdvisor, as an opt-in.

cAdvisor reads cgroups by itself and asks two runtimes for the labels of what it finds there. One of them is CRI-O: a group
whose name begins with `crio-` is looked up over HTTP at a fixed socket. So with `metrics.cadvisor_socket` set, containers'
cgroups are called crio-ID, and this module answers what cAdvisor asks about them:

    GET /info               where storage lies; fields storage_driver, storage_root, storage_image
    GET /containers/ID      name, pid, image, created_time (ns), labels, annotations, log_path, root, ip_addresses

Sandboxes have no process of their own here, so cAdvisor finds no group for a pod's network; those figures come by
ListPodSandboxMetrics alone.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from proto.errors import CrispError
from runtime.telemetry.http_answers import MISSING, Answer

if TYPE_CHECKING:
    from runtime.pods.node import Node
    from runtime.pods.objects import Container


class CadvisorAnswers:
    """What cAdvisor asks, answered from memory."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def answer(self, path: str) -> Answer:
        """For HttpAnswers."""
        if path == "/info":
            return _json(self._info())
        head, _, identity = path.rpartition("/")
        if head != "/containers":
            return MISSING
        try:
            container = self._node.container(identity)
        except CrispError:
            return MISSING
        return _json(self._describe(container))

    def _info(self) -> dict[str, Any]:
        root = str(self._node.paths.root)
        return {
            "storage_driver": "overlay",
            "storage_root": root,
            "storage_image": "",
            "cgroup_driver": "systemd" if self._node.host.systemd_cgroups else "cgroupfs",
        }

    def _describe(self, container: Container) -> dict[str, Any]:
        record = container.record
        layer = self._node.paths.writable_layer(record.id)
        return {
            "name": record.config.metadata.name,
            "pid": record.pid if container.shim is not None else 0,
            "image": record.config.image.user_specified_image or record.config.image.image,
            "image_ref": record.image_id,
            "created_time": record.created_at,
            "labels": dict(record.config.labels),
            "annotations": dict(record.config.annotations),
            "crio_annotations": {},
            "log_path": record.log_path,
            # cAdvisor counts the parent of this directory as the writable layer.
            "root": os.path.join(layer, "merged"),
            "sandbox": record.sandbox_id,
            "ip_addresses": container.sandbox.record.ips,
        }


def _json(document: dict[str, Any]) -> Answer:
    return Answer(json.dumps(document).encode(), "application/json")
