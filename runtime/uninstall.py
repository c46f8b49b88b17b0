"""Undoing what crisp has made on this host, once no daemon runs.

A daemon that ends leaves everything as it is, because pods go on without it. This finds it and takes it away:

    running containers     end by the same recovery and teardown that the daemon uses, if the caller wants that
    pods                   pinned namespaces, mounts, network attachments (CNI DEL), cgroups: the same way
    shared by all pods     bridge and nftables table, cgroups of the pods and of the shims, AppArmor profile, a CNI
                           configuration that came of a template
    <state>, the sockets   always
    <root>                 unless the data is to be kept: images, and what a next installation goes on with

What stays: sysctls that were switched on (forwarding), for others rely on them by now, and whatever in the two directories
is not crisp's. Everything is looked for by the names that the configuration gives, and by nothing else: another crisp on
the same host is not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from imagesvc.config import DIRECTORIES
from kernel import cgroups, lsm, mounts, namespaces, removal, sockets
from proto.errors import Code, CrispError, failed_precondition
from runtime import daemon, recovery
from runtime.host import host, systemd
from runtime.host.handlers import Handlers
from runtime.network import host as network_host
from runtime.network.cni import template
from runtime.oci import apparmor_loader
from runtime.oci.apparmor import DEFAULT_NAME
from runtime.paths import NETNS_DIRECTORY, Paths
from runtime.pods import container_stop, sandbox_stop
from runtime.shims.client import shim_alive
from runtime.shims.fork_server import ForkServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.config.settings import Config
    from runtime.pods.node import Node

ROOT_NAMES: Final = (
    *("state.db*", "credentials.key"),
    *("images", "blobs", "ingest", "layers", "containers", "empty", "builds", "build-cache"),
)
"""All that crisp keeps below <root>, as patterns."""
STATE_NAMES: Final = (
    *("crisp.sock", "daemon.lock", "containers", "layers", "sandboxes", "settings", "runtimes", "cni"),
    "builds",
)
"""The same below <state>."""


def running(config: Config) -> list[str]:
    """Ids of the containers that run, told by their shims' locks: no daemon and no database is needed."""
    bundles = Paths(config.root, config.state).bundles
    names = sorted(os.listdir(bundles)) if bundles.is_dir() else []
    return [name for name in names if shim_alive(str(bundles / name))]


async def traces(config: Config, *, keep_data: bool) -> list[str]:
    """What there is to take away, one line each. Reads only."""
    found = [f"container {name}" for name in running(config)]
    found += [f"mount {os.fsdecode(mount.mount_point)}" for mount in mounts.below(os.path.realpath(config.state))]
    found += [f"mount {NETNS_DIRECTORY / name}" for name in _namespaces(Paths(config.root, config.state))]
    found += await network_host.shared_traces(config.network)
    found += [f"cgroup {group.path}" for group in _groups(config) if group.exists()]
    if _profile_is_ours(config) and DEFAULT_NAME in lsm.apparmor_profiles():
        found.append(f"AppArmor profile {DEFAULT_NAME}")
    return found + [f"file {path}" for path in _files(config, keep_data=keep_data)]


async def uninstall(config: Config, *, end_pods: bool, keep_data: bool, grace_seconds: int) -> None:
    """Take everything away.

    Raises FAILED_PRECONDITION if a daemon runs, or containers do and `end_pods` is not set; and whatever keeps a pod from
    ending. It can be repeated after any failure.
    """
    paths = Paths(config.root, config.state)
    async with AsyncExitStack() as stack:
        stack.callback(os.close, daemon.lock(paths.lock))
        ids = running(config)
        if ids and not end_pods:
            raise failed_precondition(
                f"{len(ids)} containers run here ({ids[0][:13]} …): end their pods first, or have it done by --end-pods"
            )
        if paths.database.exists() or paths.bundles.exists():
            await _end_pods(config, paths, grace_seconds)
        await network_host.remove_shared(config.network)
        if _profile_is_ours(config):
            await apparmor_loader.unload_default()
        _remove_groups(config)
        for name in _namespaces(paths):
            namespaces.unpin(str(NETNS_DIRECTORY / name))
        mounts.detach_all(str(config.state))
        for path in _files(config, keep_data=keep_data):
            _remove(path)
        if config.nri.enabled:
            remove_nri_socket(config.nri.socket_path)
    for directory in (config.state, *(() if keep_data else (config.root,))):
        with contextlib.suppress(OSError):  # it holds what is not crisp's, or it is somebody's mount
            directory.rmdir()


def _namespaces(paths: Paths) -> list[str]:
    """Pods' network namespaces among those of the host."""
    try:
        return [name for name in os.listdir(NETNS_DIRECTORY) if paths.sandbox_of_netns(name)]
    except OSError:
        return []


async def _end_pods(config: Config, paths: Paths, grace_seconds: int) -> None:
    """Recover as a daemon would, then stop and remove every pod."""
    async with AsyncExitStack() as stack:
        fork_server = await ForkServer.start(daemon.FORK_JOBS)
        stack.push_async_callback(fork_server.close)
        no_new_layers = replace(config, images=replace(config.images, layers=DIRECTORIES))
        node = await daemon.assemble(no_new_layers, paths, fork_server, stack, _no_handlers)
        await recovery.recover(node)
        await asyncio.gather(*(_end_pod(node, sandbox_id, grace_seconds) for sandbox_id in list(node.sandboxes)))
        await node.network.destroy()


async def _end_pod(node: Node, sandbox_id: str, grace_seconds: int) -> None:
    containers = list(node.sandboxes[sandbox_id].containers)
    await asyncio.gather(*(container_stop.stop(node, container_id, grace_seconds) for container_id in containers))
    await sandbox_stop.remove(node, sandbox_id)


async def _no_handlers(*_: object) -> Handlers:
    """Ending containers needs no OCI runtime: their shims have them, and they may be uninstalled already."""
    return Handlers({}, {}, "")


def _profile_is_ours(config: Config) -> bool:
    return config.containers.apparmor_profile == DEFAULT_NAME


def _groups(config: Config) -> Iterator[cgroups.Group]:
    """The cgroups that crisp makes for itself; pods' parents are their clients'."""
    hierarchies = cgroups.detect()
    parent = _slice(config) or config.cgroup.parent
    for path in (config.cgroup.shims.strip("/"), cgroups.parent_path(parent)):
        if path:
            yield hierarchies.group(path)


def _slice(config: Config) -> str:
    """The slice of the pods whose client names none; empty without systemd's driver."""
    if not host.uses_systemd_cgroups(config.cgroup.driver, cgroups.detect()):
        return ""
    return config.cgroup.parent.strip("/").replace("/", "-").removesuffix(".slice") + ".slice"


def _remove_groups(config: Config) -> None:
    """Remove them where nothing lives in them any more: what does is not crisp's."""
    if (name := _slice(config)) and not cgroups.detect().group(cgroups.parent_path(name)).populated():
        systemd.forget_slice(name)
    for group in _groups(config):
        if not group.populated() and not group.remove():
            raise CrispError(Code.UNAVAILABLE, f"cgroup {group.path} is busy: try again")


def _files(config: Config, *, keep_data: bool) -> list[Path]:
    """What there is of crisp's files and directories."""
    found = [path for name in STATE_NAMES for path in config.state.glob(name)]
    if config.socket.is_socket() and config.socket not in found:
        found.append(config.socket)
    asked = Path(config.metrics.cadvisor_socket)
    if asked.is_socket() and not sockets.has_listener(str(asked)):  # else it is containerd's
        found.append(asked)
    if config.network.cni.conf_template:
        found += config.network.cni.conf_dir.glob(template.FILE_NAME)
    if not keep_data:
        found += [path for name in ROOT_NAMES for path in config.root.glob(name)]
    return sorted(found)


def remove_nri_socket(path: Path) -> None:
    """As a daemon that was killed leaves it. Another runtime may serve it, or plugins wait for one in its directory."""
    with contextlib.suppress(OSError):
        sockets.make_room(str(path))
        path.parent.rmdir()


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            removal.remove_tree(path)
        else:
            path.unlink()
    except OSError as error:
        raise CrispError(Code.UNAVAILABLE, f"cannot remove {error.filename or path}: {error.strerror}") from None
