"""Status: conditions that are measured, the runtime handlers, the features; and the node's pod CIDR."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import shutil
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary

from proto import api_pb2 as cri
from proto.errors import invalid

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.pods.node import Node
    from runtime.store.database import Store

LOW_DISK_BYTES: Final = 16 * 1024 * 1024
"""With less free space in its root directory the runtime cannot make containers."""

DISK_SECONDS: Final = 5.0
"""How long the file system may take to answer; the kubelet waits for ten."""


async def status(node: Node, *, verbose: bool) -> cri.StatusResponse:
    """What the kubelet asks every five seconds."""
    # Not awaited for long: the disk may hang, and that is to be said.
    await asyncio.wait({asyncio.ensure_future(node.store.try_again())}, timeout=DISK_SECONDS)
    return cri.StatusResponse(
        status=cri.RuntimeStatus(conditions=[_runtime_ready(node, await _look_at_disk(node)), await _network_ready(node)]),
        runtime_handlers=_handlers(node),
        features=cri.RuntimeFeatures(supplemental_groups_policy=True, mount_options=True, user_namespaces_host_network=True),
        info=_info(node) if verbose else {},
    )


class Disk(NamedTuple):
    """What was found of the root directory's file system."""

    free: int
    writable: bool


_LOOKS: Final[WeakKeyDictionary[Executor, asyncio.Future[Disk]]] = WeakKeyDictionary()
"""The look that is under way: one at a time, for on a disk that hangs each would keep a thread of the pool."""


async def _look_at_disk(node: Node) -> Disk | None:
    """None if it does not answer."""
    looking = _LOOKS.get(node.blocking)
    if looking is None:
        looking = asyncio.get_running_loop().run_in_executor(node.blocking, _measure_disk, node.paths.root)
        _LOOKS[node.blocking] = looking
    try:
        return await asyncio.wait_for(asyncio.shield(looking), DISK_SECONDS)
    except TimeoutError:
        return None
    finally:
        if looking.done():
            _LOOKS.pop(node.blocking, None)


def _measure_disk(root: Path) -> Disk:
    try:
        return Disk(shutil.disk_usage(root).free, os.access(root, os.W_OK))
    except OSError:
        return Disk(0, writable=False)


def _runtime_ready(node: Node, disk: Disk | None) -> cri.RuntimeCondition:
    """Can a container be started now? A handler works, state can be written."""
    reason, message = "", ""
    if not node.handlers.usable:
        reason, message = "NoOCIRuntime", f"no OCI runtime works on this host: {node.handlers.problems()}"
    elif disk is None:
        reason, message = "DiskDoesNotAnswer", f"{node.paths.root} has not answered for {DISK_SECONDS:.0f} s"
    elif not disk.writable:
        reason, message = "RootNotWritable", f"{node.paths.root} cannot be written"
    elif disk.free < LOW_DISK_BYTES:
        reason, message = "DiskFull", f"{node.paths.root} has only {disk.free} bytes left"
    elif problem := node.store.problem:
        reason, message = "StateNotWritable", problem
    if not reason and (problems := node.handlers.problems()):
        message = f"handlers that do not work, and are tried again: {problems}"
    return cri.RuntimeCondition(type="RuntimeReady", status=not reason, reason=reason, message=message)


async def _network_ready(node: Node) -> cri.RuntimeCondition:
    readiness = await node.network.check()
    return cri.RuntimeCondition(
        type="NetworkReady", status=readiness.ready, reason=readiness.reason, message=readiness.message
    )


def _handlers(node: Node) -> list[cri.RuntimeHandler]:
    """Every handler that works, and the default one under its second, empty name."""
    found = []
    for name, handler in node.handlers.named():
        features = cri.RuntimeHandlerFeatures(
            recursive_read_only_mounts=handler.features.recursive_read_only,
            user_namespaces=handler.features.user_namespaces,
        )
        found.append(cri.RuntimeHandler(name=name, features=features))
    return found


def _info(node: Node) -> dict[str, str]:
    """For people: `crictl info`."""
    info = {
        "root": str(node.paths.root),
        "state": str(node.paths.state),
        "sandboxes": len(node.sandboxes),
        "containers": len(node.containers),
        "handlers": {name: handler.describe() for name, handler in node.handlers.named()},
        "unusableHandlers": node.handlers.problems(),
        "host": node.host.describe(),
        "layers": node.layers.describe(),
        "podCIDR": node.pod_cidr,
        "nri": node.plugins.describe(),
    }
    return {"config": json.dumps(info)}


async def set_pod_cidr(node: Node, value: str) -> None:
    """Keep the pod CIDR that the kubelet hands over, and tell the network; empty text changes nothing."""
    if not value:
        return
    for part in _parts(value):
        try:
            ipaddress.ip_network(part)
        except ValueError as error:
            raise invalid(f"pod CIDR {value!r}: {error}") from None
    node.pod_cidr = value
    await node.store.settings.put("pod_cidr", value)
    await node.network.set_pod_cidrs(_parts(value))


def pod_cidrs(store: Store) -> tuple[str, ...]:
    """What the kubelet handed over in an earlier life of the daemon."""
    return _parts(dict(store.settings.items()).get("pod_cidr", ""))


def _parts(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())
