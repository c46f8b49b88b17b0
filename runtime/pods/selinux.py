"""SELinux for pods: a level for each pod, labels for its containers, volumes relabelled by a helper that can be killed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from proto import api_pb2 as cri
from proto.errors import Code, CrispError
from runtime import limits
from runtime.oci import selinux
from runtime.oci.resources import withheld

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.oci.selinux import Labels
    from runtime.pods.node import Node
    from runtime.pods.objects import Container
    from runtime.records import SandboxRecord
    from runtime.shims.fork_server import ForkServer

policy_defaults = functools.cache(selinux.policy_defaults)


def enabled(node: Node) -> bool:
    """Whether labels are given at all."""
    return node.host.has_selinux and node.config.containers.enable_selinux


def level_for(node: Node, config: cri.PodSandboxConfig) -> str:
    """The level of a new pod: as asked for, or one that no other pod has; empty where SELinux is off."""
    if not enabled(node):
        return ""
    taken = {sandbox.record.selinux_level for sandbox in node.sandboxes.values()}
    return config.linux.security_context.selinux_options.level or selinux.unique_level(taken)


def pod_label(node: Node, record: SandboxRecord) -> str:
    """Label of the files that are the pod's own; empty where SELinux is off."""
    if not enabled(node):
        return ""
    options = record.config.linux.security_context.selinux_options
    return selinux.labels(options, policy_defaults(), record.selinux_level, privileged=False).file


def labels_of(node: Node, container: Container) -> Labels | None:
    """Labels of a container; None where SELinux is off.

    Where it is off, options say nothing, as with containerd and CRI-O: clients send them to every node.
    """
    context, sandbox = container.record.config.linux.security_context, container.sandbox.record
    if not enabled(node):
        for kind in ("user", "role", "type", "level"):
            if getattr(context.selinux_options, kind):
                withheld(f"SELinux {kind}s: SELinux is off on this host, or containers.enable_selinux is false")
        return None
    asked = cri.SELinuxOption()
    asked.CopyFrom(sandbox.config.linux.security_context.selinux_options)
    asked.MergeFrom(context.selinux_options)
    return selinux.labels(asked, policy_defaults(), sandbox.selinux_level, privileged=context.privileged)


async def relabel_volumes(fork_server: ForkServer, config: cri.ContainerConfig, labels: Labels) -> None:
    """Give the volumes that ask for it the container's label."""
    paths = [mount.host_path for mount in config.mounts if mount.selinux_relabel and mount.host_path]
    await relabel_paths(fork_server, paths, labels)


async def relabel_paths(fork_server: ForkServer, paths: Sequence[str], labels: Labels) -> None:
    """Give host paths a container's label; DEADLINE_EXCEEDED if that takes too long."""
    if not paths or not labels.relabel:
        return
    try:
        await fork_server.run_job(
            "shim.relabel:relabel", {"paths": list(paths), "label": labels.file}, timeout=limits.RELABEL_SECONDS
        )
    except CrispError as error:
        if error.code is Code.DEADLINE_EXCEEDED:
            message = f"labelling a volume took longer than {limits.RELABEL_SECONDS:.0f} s: one of {', '.join(paths)}"
            raise CrispError(Code.DEADLINE_EXCEEDED, message) from None
        raise
